// The tab "Cost" of "Inside": what each token of a reply took, beside what this machine was measured to do.

import { TokenChart } from "./chart.mjs";
import { element } from "../base/dom.mjs";
import { bytes, count, figure, rate, seconds, stack, throttled } from "../base/figures.mjs";
import { MILLISECONDS, TEXT, spelled } from "./tokens.mjs";

const TOGETHER = 0.1; // a token that took less than this share of the median came together with its neighbour
const TALLEST = 3; // times the median: the height of the chart

const perSecond = (number) => `${bytes(number)}/s`;

function medianOf(times) {
  const known = Float64Array.from(times.filter((value) => value !== null)).sort();
  return known.length ? known[known.length >> 1] : 0;
}

/**
 * Milliseconds of each token (null: unknown), where tokens that came together share their time evenly: one that was
 * delivered late, and those that had waited behind it and took next to nothing.
 */
export function spread(milliseconds) {
  const times = [...milliseconds];
  const least = TOGETHER * medianOf(times);
  const small = (at) => typeof times[at] === "number" && times[at] < least;
  for (let at = 0; at < times.length; at += 1) {
    if (!small(at)) continue;
    let end = at + 1;
    while (small(end)) end += 1;
    const [before, after] = [times[at - 1] ?? 0, times[end] ?? 0];
    const from = before && before >= after ? at - 1 : at;
    const to = after > before ? end + 1 : end;
    let sum = 0;
    for (let each = from; each < to; each += 1) sum += times[each];
    times.fill(sum / (to - from), from, to);
    at = to - 1;
  }
  return times;
}

/** A reply's speed beside the bandwidth that was measured, in words. Zeros are unknown values. */
export function verdict(perToken, bandwidth, speed) {
  const had = speed ? `this reply had ${rate(speed)}` : "the speed of this reply is unknown";
  const alone = `${had}${speed ? " tokens a second" : ""}.`;
  if (!perToken) return `How much each token reads is unknown; ${alone}`;
  const reads = `Each token reads ${bytes(perToken)} of weights and cache`;
  if (!bandwidth) return `${reads}; how fast this machine reads is unknown; ${alone}`;
  if (isOver(perToken, bandwidth, speed)) {
    return (
      `${reads}. This reply read ${perSecond(perToken * speed)}, more than the ${perSecond(bandwidth)} measured ` +
      "for large reads: part of the weights stays in the processor's cache, or the machine was busy during the " +
      "measurement."
    );
  }
  const share = speed ? `: ${percentOf(perToken * speed, bandwidth)} of that` : "";
  return (
    `${reads}; at ${perSecond(bandwidth)}, the most measured here so far, this machine could do ` +
    `${rate(bandwidth / perToken)} tokens a second; ${had}${share}.`
  );
}

const percentOf = (part, whole) => `${Math.min(100, Math.round((100 * part) / whole))} %`;

/** Whether a reply read more than was measured, by the figures as they are shown. */
const isOver = (perToken, bandwidth, speed) => Math.round((100 * perToken * speed) / bandwidth) > 100;

/** Shows the cost of one reply. */
export class CostView {
  /** `onPick(index)`: show this token (0-based) in the tab "Reply". */
  constructor(onPick) {
    Object.assign(this, { tokens: [], times: [], statistics: null, costs: null });
    this.figures = {
      speed: figure("Tokens/s", "Tokens after the first, divided by the time from the first to the last (a mean)."),
      time: figure("Median time", "Half of the tokens took at most this long, the first one left out."),
      read: figure("Read/token", "To decode a token all weights are read, and the keys and values of those before it."),
      reached: figure("Reached", "Bytes read per token times tokens a second: how fast this reply read the memory."),
      share: figure("Bandwidth", "The speed reached, as a share of the fastest measured here for large reads so far."),
      first: figure("First token", "From sending the message on. In this time the prompt's new tokens are computed."),
    };
    this.words = element("p", { class: "verdict" });
    this.prompt = element("div", {});
    this.note = element("p", { class: "muted" });
    this.chart = new TokenChart({
      label: "Milliseconds of each token; Enter goes to the token",
      describe: (index) => this.#describe(index),
      onPick,
    });
    this.root = element(
      "div",
      { class: "inside-scroll" },
      this.words,
      element("div", { class: "figures" }, ...Object.values(this.figures).map((each) => each.root)),
      element("h3", {}, "The prompt, before the first token"),
      this.prompt,
      element("h3", {}, "Milliseconds of each token"),
      this.chart.root,
      this.note,
    );
    this.update = throttled(() => this.#update(), 250);
  }

  /** The tokens of a reply (a list that grows while it streams), its statistics, the model's costs; null if unknown. */
  show(tokens, statistics, costs) {
    Object.assign(this, { tokens, statistics, costs });
    this.update();
  }

  #describe(index) {
    const token = this.tokens[index];
    if (!token) return "";
    const time = this.times[index] ?? token[MILLISECONDS]; // that of the first token is not in the chart
    return `${index + 1}: “${spelled(token[TEXT])}” ${time ? seconds(time / 1000) : "unknown"}`;
  }

  #update() {
    if (this.root.closest("[hidden]")) return; // drawn when the tab is chosen
    const { statistics, costs } = this;
    // The first token's time is that of the prompt; the chart is about decoding.
    this.times = spread(this.tokens.map((token, index) => (index > 0 && token[MILLISECONDS]) || null));
    const middle = medianOf(this.times);
    const perToken = costs?.bytes_per_token ?? 0;
    const bandwidth = costs?.bandwidth ?? 0;
    const speed = statistics?.tokens_per_second || this.#mean();
    const least = bandwidth ? (1000 * perToken) / bandwidth : 0; // milliseconds per token
    this.words.textContent = costs ? (costs.problem ?? verdict(perToken, bandwidth, speed)) : "…";
    const share = isOver(perToken, bandwidth, speed) ? "over 100 %" : percentOf(perToken * speed, bandwidth);
    const values = {
      speed: speed && rate(speed),
      time: middle && seconds(middle / 1000),
      read: perToken && bytes(perToken),
      reached: perToken && speed && perSecond(perToken * speed),
      share: least && speed && share,
      first: statistics?.ttft && seconds(statistics.ttft),
    };
    for (const [name, value] of Object.entries(values)) this.figures[name].set(value || "unknown");
    this.#prompt(statistics);
    const weights = costs?.weights_bytes;
    const top = middle ? Math.max(TALLEST * middle, 1.2 * least) : 1;
    this.chart.draw(this.times, top, least || null);
    this.note.textContent = [
      middle
        ? `From 0 to ${seconds(top / 1000)}; longer bars are cut. The times are those of delivery: tokens that came ` +
          "together share theirs."
        : "Times are known only of replies made just now.",
      least && middle ? `The line is the time at the measured bandwidth, ${seconds(least / 1000)}.` : "",
      weights ? `The weights are ${[bytes(weights), costs.dtype, costs.device].filter(Boolean).join(", ")}.` : "",
    ]
      .filter(Boolean)
      .join(" ");
  }

  /** Tokens per second by their own times; 0 if none is known. */
  #mean() {
    const known = this.times.filter((value) => value !== null);
    const sum = known.reduce((total, value) => total + value, 0);
    return sum ? (1000 * known.length) / sum : 0;
  }

  #prompt(statistics) {
    if (!statistics?.prompt_tokens) {
      this.prompt.replaceChildren(element("p", { class: "muted" }, "Unknown for this reply."));
      return;
    }
    const { prompt_tokens: all, cached_tokens: cached, ttft } = statistics;
    const computed = all - cached;
    const each = computed > 1 ? `, ${seconds(ttft / computed)} for each` : "";
    this.prompt.replaceChildren(
      stack([
        ["cached", cached / all],
        ["computed", computed / all],
      ]),
      element(
        "p",
        {},
        `${count(all)} tokens: ${count(cached)} from the cache, ${count(computed)} computed` +
          `${ttft ? ` in ${seconds(ttft)}${each}` : ""}.`,
      ),
    );
  }
}
