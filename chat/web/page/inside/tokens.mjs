// Tokens on screen: the scale of probabilities, and a strip of tokens. 20,000 tokens do not block the page: spans are
// built in slices of a few milliseconds per frame, in chunks that the browser skips while they are off screen.

import { element } from "../base/dom.mjs";
import { cancel, early, later } from "../base/frames.mjs";
import { visible } from "../base/plain.mjs";

/** Fields of a token as the server sends it. */
export const TEXT = 0,
  PIECE = 1,
  PROBABILITY = 2,
  ALTERNATIVES = 3,
  MILLISECONDS = 4,
  ID = 5;

const LIMITS = [0.9, 0.7, 0.5, 0.3, 0.1, 0.01]; // the lower limits of the levels p0 to p5; below them is p6
const CHUNK = 1000; // characters after which a chunk ends at the next line break
const LONGEST_CHUNK = 4000;
const GAP = 6; // px between a token and its tip
const BRACKETED = /^(?:<[^\s<>]+>|\[[^\s[\]]+\])$/u;
const TEMPLATE = new Set(
  // besides those in bars, such as <|end|>
  ["<s>", "</s>", "<bos>", "<eos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]"],
);

/** Whether a token has a name in brackets, as control tokens have. */
export const isBracketed = (text) => BRACKETED.test(text);

/** Whether a token of a reply is a control token: it has a name, and added nothing to the text. */
export const isControl = (token) => token[PIECE] === "" && isBracketed(token[TEXT]);

/** Whether a token of a prompt is one of the known control tokens of chat templates, by its text. */
export const isOfTemplate = (text) => TEMPLATE.has(text) || /^<[|｜][^<>]*[|｜]>$/u.test(text);

/** The class of a probability on the scale; "pn" if it is not known. */
export function level(probability) {
  if (probability === null || probability === undefined) return "pn";
  const index = LIMITS.findIndex((limit) => probability >= limit);
  return `p${index < 0 ? LIMITS.length : index}`;
}

/** A probability as people read it: "87 %", "3.4 %", "under 0.01 %". */
export function percent(probability) {
  if (probability === null || probability === undefined) return "unknown";
  const value = probability * 100;
  if (value < 0.01) return "under 0.01 %";
  const digits = value < 0.1 ? 2 : value < 10 ? 1 : value > 99 && value < 99.95 ? 1 : 0;
  return `${value.toFixed(digits)} %`;
}

/** A token's text with signs for its whitespace. */
export function spelled(text) {
  if (text === "") return "∅";
  return visible(text).replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "␣");
}

/** The text of a token within a line: breaks are shown and broken; only a token of nothing else shows its spaces. */
function inline(token) {
  const text = token[TEXT];
  if (text === "") return "∅";
  const shown = /^[ \t]+$/.test(text) ? spelled(text) : visible(text).replace(/\t/g, "⇥\t");
  return shown.replace(/\n/g, "↵\n");
}

/** A token alone, in the colour of its probability. */
export const chip = (token) => element("code", { class: `token ${level(token[PROBABILITY])}` }, spelled(token[TEXT]));

/** The scale of probabilities, as a list of its steps. */
export function legend() {
  const steps = [...LIMITS, 0].map((limit, index) =>
    element("li", {}, element("span", { class: `token p${index}` }, limit ? `≥ ${Math.round(limit * 100)}` : "< 1")),
  );
  return element(
    "div",
    { class: "scale" },
    "Probability in %",
    element("ol", { "aria-label": "Colours by probability, in per cent" }, ...steps),
  );
}

/** A list of tokens that can be appended to, with one tab stop; arrow keys move, Enter or a click selects. */
export class TokenStrip {
  /**
   * `classes(token, index)`: class names of a token; `describe(token, index)`: its tip and accessible name;
   * `onSelect(index, how)`: it was "clicked", "entered" (Enter or the space bar), or the focus "moved" to it;
   * `text(token)`: what is shown of a token.
   */
  constructor({ label, classes, describe, onSelect = () => {}, text = inline }) {
    Object.assign(this, { classes, describe, onSelect, text });
    this.tip = element("div", { class: "token-tip", role: "tooltip", hidden: true });
    this.list = element("div", { class: "tokens", role: "listbox", "aria-label": label });
    this.root = element("div", { class: "strip" }, this.list, this.tip);
    this.indices = new WeakMap();
    this.task = (deadline) => this.#build(deadline);
    this.clear();
    this.list.addEventListener("click", (event) => this.#choose(event.target, "clicked"));
    this.list.addEventListener("keydown", (event) => this.#key(event));
    this.list.addEventListener("pointerover", (event) => {
      if (event.pointerType !== "touch") this.#show(event.target); // nothing would take it away
    });
    this.list.addEventListener("pointerleave", () => this.#show(null));
    this.list.addEventListener("focusin", (event) => this.#show(event.target));
    this.list.addEventListener("focusout", () => this.#show(null));
  }

  /** Remove all tokens. */
  clear() {
    cancel(this.task);
    this.tokens = [];
    this.spans = [];
    this.chunk = this.current = this.selected = this.chosen = this.goal = null;
    this.list.replaceChildren();
    this.tip.hidden = true;
  }

  /** Add tokens at the end. They appear within the next frames. */
  append(tokens) {
    for (const token of tokens) this.tokens.push(token);
    later(this.task);
  }

  /** Move the focus to a token, when it is built; not if the focus has gone elsewhere meanwhile. */
  focus(index) {
    if (index >= this.tokens.length) return;
    this.goal = { index, from: document.activeElement };
    if (index < this.spans.length) this.#arrive();
    else later(this.task);
  }

  /** Mark a token as the selected one, whose tip is not shown; null for none. */
  select(index) {
    this.selected?.removeAttribute("aria-selected");
    this.chosen = index;
    this.selected = this.spans[index] ?? null;
    this.selected?.setAttribute("aria-selected", "true");
    this.tip.hidden = true;
    if (index === null) this.goal = null;
  }

  /** Scroll so that a token is seen, with the lines around it. */
  reveal(index) {
    this.spans[index]?.scrollIntoView({ block: "nearest" });
  }

  #arrive() {
    const { index, from } = this.goal;
    this.goal = null;
    if (![from, document.body].includes(document.activeElement)) return;
    const span = this.spans[index];
    this.#stop(span);
    span.focus({ preventScroll: true });
    this.onSelect(index, "moved");
    this.reveal(index);
  }

  /** Build the spans of tokens that have none, until the deadline. Returns whether there are any left. */
  #build(deadline) {
    let added = null;
    const flush = () => added && this.chunk.append(added);
    let index = this.spans.length;
    for (; index < this.tokens.length && (index & 15 || early(deadline)); index += 1) {
      if (!this.chunk) {
        this.chunk = element("div", { class: "token-chunk", role: "none" });
        this.size = 0;
        this.list.append(this.chunk);
      }
      added ??= document.createDocumentFragment();
      const token = this.tokens[index];
      const span = document.createElement("span");
      span.className = `token ${this.classes(token, index)}`;
      span.setAttribute("role", "option");
      span.textContent = this.text(token);
      added.append(span);
      this.indices.set(span, index);
      this.spans.push(span);
      this.size += token[TEXT].length + 1;
      if (this.size >= LONGEST_CHUNK || (this.size >= CHUNK && token[TEXT].endsWith("\n"))) {
        flush();
        this.chunk = added = null;
      }
    }
    flush();
    if (!this.current && this.spans.length) this.#stop(this.spans[0]);
    if (this.chosen !== null && !this.selected) this.select(this.chosen);
    if (this.goal && this.goal.index < this.spans.length) this.#arrive();
    return index < this.tokens.length;
  }

  #stop(span) {
    if (this.current && this.current !== span) this.current.removeAttribute("tabindex");
    this.current = span;
    span.tabIndex = 0;
    const index = this.indices.get(span);
    span.setAttribute("aria-label", this.describe(this.tokens[index], index));
  }

  #choose(target, how) {
    const index = this.indices.get(target);
    if (index === undefined) return;
    this.goal = null;
    this.#stop(target);
    target.focus({ preventScroll: true }); // a token that had no tab stop when it was pressed did not get the focus
    this.onSelect(index, how);
  }

  #key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const index = this.indices.get(event.target);
    if (index === undefined) return;
    const last = this.tokens.length - 1;
    const moves = {
      ArrowLeft: () => Math.max(index - 1, 0),
      ArrowRight: () => Math.min(index + 1, last),
      ArrowUp: () => this.#line(index, -1),
      ArrowDown: () => this.#line(index, 1),
      Home: () => 0,
      End: () => last,
    };
    if (event.key === "Enter" || event.key === " ") this.#choose(event.target, "entered");
    else if (moves[event.key]) this.focus(moves[event.key]());
    else return;
    event.preventDefault();
  }

  /** The token of the line above or below that is nearest in the horizontal. */
  #line(index, step) {
    const from = this.spans[index].getClientRects()[0];
    let line = null;
    let best = index;
    let distance = Infinity;
    for (let at = index + step; at >= 0 && at < this.spans.length; at += step) {
      const box = this.spans[at].getClientRects()[0];
      if (!box || Math.abs(box.top - from.top) < box.height / 2) continue;
      line ??= box.top;
      if (Math.abs(box.top - line) >= box.height / 2) break;
      const gap = Math.abs(box.left - from.left);
      if (gap < distance) [best, distance] = [at, gap];
    }
    return best;
  }

  /** Show the tip of a token, above it if there is room. It scrolls with the tokens. */
  #show(target) {
    const index = target ? this.indices.get(target) : undefined;
    this.tip.hidden = index === undefined || target === this.selected;
    if (this.tip.hidden) return;
    this.tip.textContent = this.describe(this.tokens[index], index);
    const frame = this.root.getBoundingClientRect();
    const box = target.getClientRects()[0] ?? target.getBoundingClientRect();
    const left = Math.min(box.left - frame.left, frame.width - this.tip.offsetWidth);
    const above = box.top - this.tip.offsetHeight - GAP;
    const top = this.root.parentElement.closest(".inside-scroll").getBoundingClientRect().top;
    this.tip.style.setProperty("left", `${Math.max(0, left)}px`);
    this.tip.style.setProperty("top", `${(above < top ? box.bottom + GAP : above) - frame.top}px`);
  }
}
