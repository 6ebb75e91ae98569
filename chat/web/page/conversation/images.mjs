// Images of messages: those that wait in the composer, and those of a turn.

import * as api from "../base/api.mjs";
import { element, iconButton } from "../base/dom.mjs";
import { visible } from "../base/plain.mjs";

const MOST = 8; // images of a message
const LARGEST_SUM = 60_000_000; // characters of their data: URLs

const waiting = new Map(); // those of composers that are not open, by the keys of their drafts

/** Whether a file is an image; an SVG is a text. */
export const isImage = ({ type }) => type.startsWith("image/") && type !== "image/svg+xml";

/** The images that go with the next message: [{name, image}], with the data: URL. The element is `tray.element`. */
export class Tray {
  images = [];

  /** `changed()` is called after each change; `emptied()` when the focus has nowhere to go. */
  constructor(changed, emptied) {
    Object.assign(this, { changed, emptied });
    this.element = element("ul", { class: "tray", "aria-label": "Attached images", hidden: true });
  }

  /** Add images that are not there yet. Raises an Error with one line if there is no room for one. */
  add(images) {
    for (const each of images) {
      if (this.images.some(({ image }) => image === each.image)) continue;
      if (this.images.length >= MOST) throw new Error(`a message takes up to ${MOST} images; send these first`);
      const size = this.images.reduce((sum, { image }) => sum + image.length, each.image.length);
      if (size > LARGEST_SUM) throw new Error(`${each.name}: the images of a message are too large together`);
      this.images.push(each);
      this.element.append(this.#thumbnail(each));
      this.#update();
    }
  }

  /** Take all images out. */
  take() {
    const { images } = this;
    this.images = [];
    this.element.replaceChildren();
    this.#update();
    return images;
  }

  /** Keep the images while the composer is not open: until this tab is closed, as they are too large for drafts. */
  keep(key) {
    if (this.images.length) waiting.set(key, this.images);
    else waiting.delete(key);
  }

  /** Take up the images that were kept. */
  recall(key) {
    this.add(waiting.get(key) ?? []);
    waiting.delete(key);
  }

  #thumbnail(each) {
    const name = visible(each.name);
    const remove = iconButton("close", `Remove ${name}`, () => this.#remove(each, node));
    const node = element("li", {}, element("img", { src: each.image, alt: name, title: name }), remove);
    return node;
  }

  #remove(each, node) {
    const next = node.nextElementSibling ?? node.previousElementSibling;
    this.images = this.images.filter((other) => other !== each);
    node.remove();
    this.#update();
    if (next) next.querySelector("button").focus();
    else this.emptied();
  }

  #update() {
    this.element.hidden = !this.images.length;
    this.changed();
  }
}

/** The images of a turn as buttons that show them large. */
export function pictures(id, images) {
  return images.map((each) => {
    const name = visible(each.name);
    const address = api.imageAddress(id, each.id);
    const show = async () => (await import("../base/images.mjs")).enlarge(name, address);
    const image = element("img", { src: address, alt: name });
    const label = `Enlarge ${name}`;
    const about = { type: "button", class: "shot", title: label, "aria-label": label };
    return element("button", { ...about, onclick: show }, image);
  });
}
