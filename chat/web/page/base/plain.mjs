// Text without markup, however long: appended piece by piece, in blocks small enough that each frame's layout is short.

const CHUNK = 2000; // characters
const SYMBOLS = 0x2400; // Unicode's pictures of the control characters
const DELETE_SYMBOL = "\u2421";
// control characters, and the marks that change the direction of what follows; line feed and tab are text
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

/** Show control characters and direction marks as symbols, so that a text looks like what it contains. */
export function visible(text) {
  return text.replaceAll("\r\n", "\n").replace(UNSEEN, (character) => {
    const code = character.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(SYMBOLS + code);
    if (code === 0x7f) return DELETE_SYMBOL;
    return `\u27e6U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e7`;
  });
}

/** A growing text in `parent`, which keeps its line breaks by CSS (white-space). */
export class PlainText {
  #text = null; // the text node of the last chunk
  #size = 0;

  constructor(parent) {
    this.parent = parent;
  }

  /** Add text at the end. */
  append(text) {
    for (let rest = text; rest;) {
      const cut = this.#cut(rest);
      this.#add(rest.slice(0, Math.abs(cut)));
      if (cut < 0) this.#text = null;
      rest = rest.slice(Math.abs(cut));
    }
  }

  /** How much of `text` goes into this chunk; negative if the chunk ends there, which is after a line if possible. */
  #cut(text) {
    if (this.#text === null || this.#size < CHUNK) return Math.min(text.length, CHUNK);
    if (this.#size >= 3 * CHUNK) return -1;
    const end = text.slice(0, CHUNK).search(this.#size < 2 * CHUNK ? /\n/ : /\s/);
    return end < 0 ? Math.min(text.length, CHUNK) : -(end + 1);
  }

  #add(text) {
    if (this.#text === null) {
      this.#text = document.createTextNode("");
      this.#size = 0;
      const chunk = document.createElement("span");
      chunk.className = "chunk";
      chunk.append(this.#text);
      this.parent.append(chunk);
    }
    this.#text.appendData(visible(text));
    this.#size += text.length;
  }
}
