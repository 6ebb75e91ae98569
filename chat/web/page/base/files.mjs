// Files of the user: text that goes into a message, and saved conversations.

import * as api from "./api.mjs";

const LARGEST = 200_000; // bytes of a file in a message
const LARGEST_IMPORT = 60_000_000; // bytes of a saved conversation, which has its images

/** Whether files are dragged, and not a text. */
export const hasFiles = (event) => event.dataTransfer.types.includes("Files");

/** Take the files that are dropped on `node`. */
export function takeDrops(node, take) {
  node.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    node.classList.add("dropping");
  });
  node.addEventListener("dragleave", (event) => {
    if (!node.contains(event.relatedTarget)) node.classList.remove("dropping");
  });
  node.addEventListener("drop", (event) => {
    node.classList.remove("dropping");
    if (!hasFiles(event)) return;
    event.preventDefault();
    take([...event.dataTransfer.files]);
  });
}

/** A text file as a fenced block with its name. Raises an Error with one line if it is too large, or not text. */
export async function fenced(file) {
  if (file.size > LARGEST) {
    throw new Error(
      `${file.name} has ${Math.ceil(file.size / 1000)} kB; a message takes text files up to ${LARGEST / 1000} kB`,
    );
  }
  const text = await decode(file);
  let longest = 2;
  for (const [run] of text.matchAll(/`+/g)) longest = Math.max(longest, run.length);
  const fence = "`".repeat(longest + 1);
  const suffix = /\.(\w{1,12})$/.exec(file.name)?.[1] ?? "";
  return `${file.name}:\n${fence}${suffix}\n${text.trimEnd()}\n${fence}\n`;
}

/** Import a saved conversation. Returns its id. */
export async function importConversation(file) {
  if (file.size > LARGEST_IMPORT) {
    throw new Error(`${file.name} is too large: a saved conversation has up to ${LARGEST_IMPORT / 1e6} MB`);
  }
  let content;
  try {
    content = JSON.parse(await decode(file));
  } catch (error) {
    const isSyntax = error instanceof SyntaxError;
    throw new Error(isSyntax ? `${file.name} is not JSON; import a file that was exported as JSON` : error.message);
  }
  return (await api.importFile(file.name, content)).id;
}

async function decode(file) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    if (!text.includes("\0")) return text;
  } catch {
    // not UTF-8, or not readable
  }
  throw new Error(`${file.name} is not a text file (UTF-8)`);
}
