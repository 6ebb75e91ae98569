// A growing Markdown text as DOM. The text is cut into blocks; a finished block is rendered once, only the last one is
// drawn again while it grows. Each character is scanned once, so the work is linear in the length of the text.

import { element } from "../base/dom.mjs";
import { cancel, early, later } from "../base/frames.mjs";
import { codeFigure, render } from "./markdown.mjs";
import { PlainText } from "../base/plain.mjs";
import { Scanner, plainSource } from "./scanner.mjs";

const LARGEST = 10_000; // characters; a longer block is drawn as plain text, as Markdown can take quadratic time
const SLOW = 40; // ms; a block that took longer is drawn as plain text until it is finished
const SMALL = 2_000; // characters of a block that is never slow: then it is the machine that is busy
const SECTION = 32; // blocks in one element, which the browser need not lay out while it is out of sight
const REST = 4; // drawing the last block again waits this many times as long as it took
const STEP = 16_000; // characters of plain text that are added in one frame

/** A reply's text in `parent`. `append` and `set` return at once; the text is drawn in the coming frames. */
export class Blocks {
  #scanner = new Scanner();
  #blocks = []; // {length, open, next, node}
  #live = null; // the element of the last block
  #finished = null; // a finished block that is being drawn in steps
  #plain = null; // {text: PlainText, drawn}: the last block, where it is code or too long for Markdown
  #ended = false;
  #drawn = -1; // length of the text when the last block was drawn
  #slow = false; // drawing the last block took so long that it is not drawn again before its end
  #wake = 0; // time before which the last block is not drawn again
  #task = (deadline) => this.draw(deadline);

  constructor(parent) {
    this.parent = parent;
    this.#beginBlock();
  }

  /** The whole text. */
  get text() {
    return this.#scanner.text;
  }

  /** Add text at the end. */
  append(text) {
    if (this.#ended) this.set(this.text + text, false);
    else this.#scanner.text += text;
    later(this.#task);
  }

  /** Make this the text. The blocks that it shares with the text before stay as they are. */
  set(text, ended = true) {
    const before = this.text;
    let kept = 0;
    let position = 0;
    for (const { length, open } of this.#blocks) {
      const end = position + length;
      const same = text.slice(position, end) === before.slice(position, end) && (!open || end === text.length);
      if (!same) break;
      kept += 1;
      position = end;
    }
    const grows = kept === this.#blocks.length && text.startsWith(before.slice(position), position);
    if (grows && !this.#finished) this.#scanner.text = text;
    else this.#goBack(text, kept, position);
    this.#ended = ended;
    this.#wake = 0;
    later(this.#task);
  }

  /** Stop drawing. */
  close() {
    cancel(this.#task);
  }

  /** Draw what is new until `deadline`. Returns whether there is more to do. */
  draw(deadline) {
    do {
      this.#finished ??= this.#scanner.next(this.#ended);
      if (!this.#finished) return this.#drawLive();
      if (!this.#finish(this.#finished)) return true;
      this.#finished = null;
    } while (early(deadline));
    return true;
  }

  #goBack(text, kept, position) {
    for (const { node } of this.#blocks.splice(kept)) node?.remove();
    this.#finished = null;
    this.#live.remove();
    this.#beginBlock();
    this.#scanner.restart(text, position, this.#blocks.at(-1)?.next);
  }

  /** Begin the next block: in the last section, if there is room. */
  #beginBlock() {
    let section = this.parent.lastElementChild;
    if (!section || section.childElementCount >= SECTION) {
      section = element("div", { class: "blocks" });
      this.parent.append(section);
    }
    this.#live = element("div", { class: "block" });
    section.append(this.#live);
    this.#plain = null;
    this.#slow = false;
    this.#drawn = -1;
  }

  /** Draw a finished block. Returns false if it is so long that the next frame has to go on with it. */
  #finish(block) {
    const plain = isPlain(block) || !this.#markdown(block);
    if (plain && !this.#extend(block, false)) return false;
    const node = this.#live.hasChildNodes() ? this.#live : null; // none of an empty line
    this.#blocks.push({ length: block.source.length, open: block.open, next: block.next, node });
    if (node) this.#beginBlock();
    return true;
  }

  /** Draw the block that is not finished. Returns whether there is more to do. */
  #drawLive() {
    const { kind, language, begin, start, text } = this.#scanner;
    if (this.#drawn === text.length) return false;
    const block = { source: text.slice(begin), kind, language, start };
    if (!this.#plain && !this.#slow && !isPlain(block)) {
      if (performance.now() < this.#wake) return true;
      if (!this.#markdown(block)) return true;
    } else if (!this.#extend(block, true)) return true;
    this.#drawn = text.length;
    return false;
  }

  /** Draw the last block as Markdown. Returns false if it has to be plain text: it is slow, or nested too deeply. */
  #markdown({ source, start }) {
    const begun = performance.now();
    let nodes = null;
    try {
      nodes = render(source, start);
    } catch {
      this.#plain ??= this.#startPlain({});
      return false;
    }
    this.#plain = null;
    this.#live.replaceChildren(nodes);
    const time = performance.now() - begun;
    this.#wake = performance.now() + REST * time;
    if (time > SLOW && source.length > SMALL) this.#slow = true;
    return true;
  }

  /** Draw the next step of the last block as plain text. Returns whether all of it is drawn. */
  #extend(block, growing) {
    this.#plain ??= this.#startPlain(block);
    const source = plainSource(block, growing);
    const end = Math.min(source.length, this.#plain.drawn + STEP);
    this.#plain.text.append(source.slice(this.#plain.drawn, end));
    this.#plain.drawn = Math.max(this.#plain.drawn, end);
    return end === source.length;
  }

  #startPlain({ kind, language }) {
    const parent = kind === "fence" ? element("code") : element("div", { class: "plain", dir: "auto" });
    this.#live.replaceChildren(kind === "fence" ? codeFigure(parent, language) : parent);
    return { text: new PlainText(parent), drawn: 0 };
  }
}

const isPlain = ({ kind, source }) => kind === "fence" || source.length > LARGEST;
