// A bar chart of one value per token, as SVG: hover or arrow keys read it, a click or Enter picks a token.

import { element } from "../base/dom.mjs";
import { count } from "../base/figures.mjs";

const BARS = 240; // at most: more tokens share bars
const HEIGHT = 100;
const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

/** A chart that is also a slider: its value is the number of a token. */
export class TokenChart {
  /**
   * `label`: accessible name; `describe(index)`: the line about a token; `onPick(index)`: a token was picked;
   * `lowest`: a bar of several tokens shows the least of their values instead of the greatest, marked under the rule.
   */
  constructor({ label, describe, onPick, lowest = false }) {
    Object.assign(this, { describe, onPick, lowest });
    this.values = [];
    this.at = 0;
    this.bars = shape("path", { class: "chart-bars" });
    this.low = shape("path", { class: "chart-low" });
    this.rule = shape("path", { class: "chart-rule" });
    this.cursor = shape("path", { class: "chart-cursor" });
    const svg = shape("svg", { preserveAspectRatio: "none", "aria-hidden": "true" });
    svg.append(this.bars, this.low, this.rule, this.cursor);
    this.svg = svg;
    this.box = element("div", { class: "chart", role: "slider", tabindex: "0", "aria-label": label }, svg);
    this.from = element("span", {});
    this.to = element("span", {});
    this.reading = element("span", { class: "chart-reading" });
    this.root = element("div", {}, this.box, element("div", { class: "chart-axis" }, this.from, this.reading, this.to));
    this.box.addEventListener("pointermove", (event) => this.#read(this.#index(event)));
    this.box.addEventListener("pointerleave", () => this.#read(null));
    this.box.addEventListener("click", (event) => this.values.length && onPick(this.#index(event)));
    this.box.addEventListener("keydown", (event) => this.#key(event));
    this.box.addEventListener("focus", () => this.#read(this.at));
    this.box.addEventListener("blur", () => this.#read(null));
  }

  /** Show these values (null where one is unknown) on a scale from 0 to `max`, with a line across at `rule`. */
  draw(values, max, rule = null) {
    this.values = values;
    const bins = Math.max(1, Math.min(values.length, BARS));
    const combine = this.lowest ? Math.min : Math.max;
    const paths = { bars: "", low: "" };
    for (let bin = 0; bin < bins; bin += 1) {
      const end = Math.ceil(((bin + 1) * values.length) / bins);
      let value = null;
      for (let at = Math.ceil((bin * values.length) / bins); at < end; at += 1) {
        if (values[at] !== null) value = value === null ? values[at] : combine(value, values[at]);
      }
      if (value !== null) {
        const top = HEIGHT - Math.max(1, Math.min(1, value / (max || 1)) * HEIGHT);
        const kind = this.lowest && value < rule ? "low" : "bars";
        paths[kind] += `M${bin} ${HEIGHT}V${top.toFixed(1)}H${bin + 0.85}V${HEIGHT}Z`;
      }
    }
    this.svg.setAttribute("viewBox", `0 0 ${bins} ${HEIGHT}`);
    this.bars.setAttribute("d", paths.bars);
    this.low.setAttribute("d", paths.low);
    const height = HEIGHT * (1 - rule / max);
    this.rule.setAttribute("d", rule === null || !(height > 0) ? "" : `M0 ${height}H${bins}`);
    this.from.textContent = values.length ? "token 1" : "";
    this.to.textContent = values.length > 1 ? count(values.length) : "";
    this.at = Math.min(this.at, Math.max(0, values.length - 1));
    this.box.setAttribute("aria-valuemin", "1");
    this.box.setAttribute("aria-valuemax", `${Math.max(1, values.length)}`);
    this.#announce();
  }

  #index(event) {
    const box = this.svg.getBoundingClientRect();
    const share = (event.clientX - box.left) / (box.width || 1);
    return Math.max(0, Math.min(this.values.length - 1, Math.floor(share * this.values.length)));
  }

  #read(index) {
    const shown = index !== null && this.values.length > 0;
    this.reading.textContent = shown ? this.describe(index) : "";
    const bins = Math.max(1, Math.min(this.values.length, BARS));
    const x = shown ? ((index + 0.5) / this.values.length) * bins : 0;
    this.cursor.setAttribute("d", shown ? `M${x} 0V${HEIGHT}` : "");
  }

  #announce() {
    this.box.setAttribute("aria-valuenow", `${this.at + 1}`);
    this.box.setAttribute("aria-valuetext", this.values.length ? this.describe(this.at) : "no tokens");
  }

  #key(event) {
    const last = this.values.length - 1;
    const page = Math.max(1, Math.round(last / 10));
    const moves = {
      ArrowLeft: -1,
      ArrowDown: -1,
      ArrowRight: 1,
      ArrowUp: 1,
      PageDown: -page,
      PageUp: page,
      Home: -last,
      End: last,
    };
    if (last < 0) return;
    if (event.key === "Enter") this.onPick(this.at);
    else if (moves[event.key] === undefined) return;
    else {
      this.at = Math.max(0, Math.min(last, this.at + moves[event.key]));
      this.#read(this.at);
      this.#announce();
    }
    event.preventDefault();
  }
}
