// Where the blocks of a Markdown text end, while the text grows. Each character is looked at once.

const LONG_LIST = 4000; // characters after which a list goes on in another block
const FENCE = /^ {0,3}(`{3,}(?=[^`]*$)|~{3,})\s*(\S*)/;
const ITEM = /^(?:[-+*]|(\d{1,9})([.)]))(?:\s|$)/;
const FENCE_IN_LIST = /^\s*(?:(?:[-+*]|\d{1,9}[.)])\s+)?(`{3,}(?=[^`]*$)|~{3,})/;
const CLOSING = /^ {0,3}(?:`+|~+)\s*$/;

/** Cuts a growing text into blocks. A block ends at an empty line outside a fence or a list. */
export class Scanner {
  text = "";
  begin = 0; // of the block that is not finished
  kind = ""; // of that block: list, fence, text; empty before its first line
  language = ""; // of a fence
  start = null; // number of the first item, if the block goes on with a numbered list
  #next = null; // {number, mark} of the next item of a numbered list
  #line = 0; // begin of the line that is not scanned
  #searched = 0; // there is no line feed between #line and this
  #fence = ""; // what closes the fence that is open
  #blank = false; // the line before was empty

  /** The next finished block as {source, kind, language, open, start, next}, or null. `ended`: no more text
   *  will come. `open`: only the end of the text ended the block; `start`, `next`: numbers of the list that goes on here
   *  and after it, or null. */
  next(ended = false) {
    while (this.#line < this.text.length) {
      const newline = this.text.indexOf("\n", Math.max(this.#line, this.#searched));
      this.#searched = newline < 0 ? this.text.length : newline;
      if (newline < 0 && !ended) return null;
      const end = newline < 0 ? this.text.length : newline + 1;
      const line = this.text.slice(this.#line, end).trimEnd();
      if (this.#beginsBlock(line)) return this.#cut(this.#line, false, this.#goesOn(line));
      const closed = this.#read(line);
      this.#line = end;
      if (closed) return this.#cut(end, false);
    }
    return ended && this.begin < this.text.length ? this.#cut(this.text.length, true) : null;
  }

  /** Go on with `text` after `position`, where a block ends; `start`: the `next` of that block. */
  restart(text, position, start = null) {
    this.text = text;
    this.#reset(position, start);
  }

  #reset(position, start) {
    this.start = start;
    this.#next = null;
    this.begin = this.#line = this.#searched = position;
    this.kind = this.language = this.#fence = "";
    this.#blank = false;
  }

  #cut(end, open, next = null) {
    const { kind, language, start } = this;
    const block = { source: this.text.slice(this.begin, end), kind, language, open, start, next };
    this.#reset(end, next);
    return block;
  }

  /** The number of the item that begins the next block, if the list goes on there. */
  #goesOn(line) {
    const [, number, mark] = ITEM.exec(line) ?? [];
    return this.kind === "list" && number && mark === this.#next?.mark ? this.#next.number : null;
  }

  #countItem([, number, mark]) {
    const first = (this.kind ? null : this.start) ?? Number(number);
    if (!number) this.#next = null;
    else if (this.#next?.mark === mark) this.#next.number += 1;
    else this.#next = { number: first + 1, mark };
  }

  #beginsBlock(line) {
    if (!this.kind || !line || this.#fence) return false;
    if (this.kind === "list") {
      if (ITEM.test(line)) return this.#line - this.begin > LONG_LIST;
      return this.#blank && !/^\s/.test(line);
    }
    return this.#blank || FENCE.test(line);
  }

  /** Take a line into the block. Returns whether the block ends with it. */
  #read(line) {
    this.#blank = !line;
    if (!line && !this.kind) return true; // an empty line between blocks
    if (this.#fence) {
      const mark = line.trim();
      const closes = mark.startsWith(this.#fence) && !mark.replaceAll(this.#fence[0], "");
      if (closes) this.#fence = "";
      return closes && this.kind === "fence";
    }
    const item = ITEM.exec(line);
    if (item) this.#countItem(item);
    const fence = (this.kind === "list" || item ? FENCE_IN_LIST : FENCE).exec(line);
    if (fence) this.#fence = fence[1];
    if (item)
      this.kind = "list"; // also after a line of text
    else if (!this.kind) this.kind = fence ? "fence" : "text";
    if (this.kind === "fence") this.language ||= fence?.[2] ?? "";
    return false;
  }
}

/** What a block shows where it is not drawn as Markdown: of a fence, only what is inside. `growing`: its last line may
 *  become the closing fence, and is not shown yet. */
export function plainSource({ source, kind }, growing) {
  if (kind !== "fence") return source;
  const start = source.indexOf("\n") + 1;
  const trimmed = source.trimEnd();
  const last = trimmed.lastIndexOf("\n") + 1;
  if (last >= start && CLOSING.test(trimmed.slice(last))) return source.slice(start, last);
  return source.slice(start, growing ? trimmed.length : source.length);
}
