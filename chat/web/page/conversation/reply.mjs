// The reply of a turn: reasoning, text, why it ended, what it cost.

import { element, hidden, icon } from "../base/dom.mjs";
import { count, throttled } from "../base/figures.mjs";
import { later } from "../base/frames.mjs";
import { PlainText, visible } from "../base/plain.mjs";
import { Blocks } from "../markdown/blocks.mjs";

const ENDINGS = { cancelled: "Stopped.", loop: "Stopped, because the reply repeated itself." };
const COUNTED_EVERY = 250; // ms between updates of the running count
const FEW = 8; // tokens; a speed of fewer says little
const NEAR = 24; // px from the end of the reasoning that count as being there
const THINKING = "Thinking…";

/** Draws a reply; the element is `view.element`. */
export class ReplyView {
  #tokens = 0;
  #milliseconds = 0;
  #added = false; // the reply was continued: its statistics are about the new part
  #count = throttled(() => this.#showCount(), COUNTED_EVERY);
  #running = false;

  constructor() {
    this.body = element("div", { class: "markdown" });
    this.blocks = new Blocks(this.body);
    this.reasoning = new Reasoning();
    this.thinking = element("p", { class: "thinking", text: THINKING });
    this.nothing = element("p", { class: "none", text: "(empty reply)", hidden: true });
    this.ending = element("p", { class: "ending" });
    this.statistics = element("p", { class: "statistics" });
    const parts = [this.reasoning.element, this.body, this.thinking, this.nothing, this.ending];
    this.element = element("section", { class: "reply" }, hidden("h2", "Reply"), ...parts);
  }

  /** Show a finished reply. `turn` is a turn of a snapshot; its reply may be null. `limit`: which one cut it off. */
  show(turn, limit = "") {
    this.thinking.hidden = true;
    this.nothing.hidden = turn.reply !== "";
    const notice = turn.notices.find((entry) => entry.kind === "reasoning");
    this.reasoning.set(turn.reasoning ?? "", notice?.text ?? "Reasoning");
    this.blocks.set(turn.reply ?? "");
    const why = turn.finish_reason;
    const done = !why || why === "stop";
    const text = limit ? `Cut off: ${limit}.` : (ENDINGS[why] ?? `Ended early: ${visible(why ?? "")}.`);
    this.ending.replaceChildren(...(done ? [] : [icon("info"), text]));
    const added = this.#added && this.#running;
    this.#running = false;
    this.statistics.textContent = turn.statistics ? (added ? "New part: " : "") + describe(turn.statistics) : "";
  }

  /** Show a reply that is running. `running`: {text, reasoning, tokens}. */
  begin({ text, reasoning, tokens = [] }) {
    this.#running = true;
    this.#added = Boolean(text) && !tokens.length;
    this.nothing.hidden = true;
    this.ending.replaceChildren();
    this.#tokens = this.#milliseconds = 0;
    this.statistics.textContent = "";
    this.reasoning.set(reasoning, THINKING);
    this.blocks.set(text, false);
    this.#add(tokens);
    this.#showThinking();
  }

  /** Add a piece. */
  append({ text, reasoning, tokens }) {
    if (reasoning) this.reasoning.set(this.reasoning.text + reasoning, THINKING);
    if (text) this.blocks.append(text);
    this.#add(tokens);
    if (text || reasoning) this.#showThinking();
  }

  /** Stop drawing. */
  close() {
    this.blocks.close();
  }

  #showThinking() {
    this.thinking.hidden = Boolean(this.blocks.text || this.reasoning.text);
    if (this.blocks.text) this.reasoning.end("Reasoning");
  }

  #add(tokens) {
    for (const [, , , , milliseconds] of tokens) {
      this.#tokens += 1;
      if (this.#tokens > 1) this.#milliseconds += milliseconds;
    }
    if (this.#tokens) this.#count();
  }

  #showCount() {
    if (!this.#running) return;
    const speed = this.#milliseconds ? ((this.#tokens - 1) / this.#milliseconds) * 1000 : 0;
    const rest = this.#tokens >= FEW && speed ? ` · ${speed.toFixed(1)} tokens/s` : "";
    this.statistics.textContent = `${count(this.#tokens)} token${this.#tokens === 1 ? "" : "s"}${rest}`;
  }
}

/** What a model thought before its reply: open while it thinks, and the end in sight. */
class Reasoning {
  text = "";
  #plain = null;
  #drawn = 0;
  #thinking = false;
  #draw = () => {
    const end = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < NEAR;
    this.#plain.append(this.text.slice(this.#drawn));
    this.#drawn = this.text.length;
    if (end && this.#thinking) this.box.scrollTop = this.box.scrollHeight;
    return false;
  };

  constructor() {
    this.summary = element("summary");
    this.box = element("div", { class: "plain", dir: "auto", tabIndex: 0, role: "region", "aria-label": "Reasoning" });
    this.element = element("details", { class: "reasoning", hidden: true }, this.summary, this.box);
  }

  /** Make this the text, under this label. */
  set(text, label) {
    if (!text.startsWith(this.text) || !this.#plain) {
      this.box.replaceChildren();
      this.#plain = new PlainText(this.box);
      this.#drawn = 0;
    }
    this.text = text;
    this.element.hidden = !text;
    this.summary.textContent = visible(label);
    const thinking = label === THINKING;
    if (text && thinking !== this.#thinking) {
      this.#thinking = thinking;
      this.element.open = thinking;
    }
    if (this.#drawn < text.length) later(this.#draw);
  }

  /** The reply has begun: close it. */
  end(label) {
    if (!this.#thinking) return;
    this.#thinking = this.element.open = false;
    this.summary.textContent = label;
  }
}

function describe(statistics) {
  const { ttft, tokens_per_second: speed, prompt_tokens: prompt, cached_tokens: cached } = statistics;
  const { completion_tokens: tokens } = statistics;
  const parts = [`${count(tokens)} token${tokens === 1 ? "" : "s"}`];
  if (speed) parts.push(`${speed.toFixed(1)} tokens/s`);
  if (ttft) parts.push(`first after ${ttft.toFixed(2)} s`);
  if (prompt) parts.push(`${count(cached)} of ${count(prompt)} prompt tokens cached`);
  return parts.join(" · ");
}
