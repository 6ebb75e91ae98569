// Files that a model sees as images: how they are read, and how one is shown large.

import { openDialog } from "./dialog.mjs";
import { element } from "./dom.mjs";

const KINDS = new Set(["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"]); // that the server reads
const LARGEST = 20_000_000; // bytes of an image
const LARGEST_SIDE = 4096; // pixels of an image that is converted

/** An image file as {name, image}, the image as a data: URL. Raises an Error with one line. */
export async function readImage(file) {
  const blob = KINDS.has(file.type) ? file : await converted(file);
  if (blob.size > LARGEST) {
    const size = `${Math.ceil(blob.size / 1e6)} MB`;
    throw new Error(`${file.name} has ${size}; a message takes images up to ${LARGEST / 1e6} MB each`);
  }
  return { name: file.name, image: await dataUrl(blob, file.name) };
}

/** An image that the server has, as {name, image}. */
export async function fetchImage(name, address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${name} is not on the server any more; attach it again`);
  return { name, image: await dataUrl(await response.blob(), name) };
}

/** Show an image as large as the window. */
export function enlarge(name, address) {
  openDialog("picture", name, element("img", { src: address, alt: name }));
}

function dataUrl(blob, name) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${name} cannot be read`));
    reader.readAsDataURL(blob);
  });
}

/** Another kind of image that this browser can show, such as AVIF or HEIC, as PNG. */
async function converted(file) {
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
    const size = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
    const canvas = element("canvas", { width: size[0], height: size[1] });
    canvas.getContext("2d").drawImage(bitmap, 0, 0, ...size);
    bitmap.close();
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    if (blob) return blob;
  } catch {
    // said below
  }
  throw new Error(`${file.name} is no image that this browser can read; use PNG, JPEG, WebP, GIF or BMP`);
}
