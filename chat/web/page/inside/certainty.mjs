// The tab "Reply" of "Inside": each token of a reply by its probability, and the alternatives to it.

import { TokenChart } from "./chart.mjs";
import { button, element, iconButton } from "../base/dom.mjs";
import { count, figure, seconds, throttled } from "../base/figures.mjs";
import {
  ALTERNATIVES,
  ID,
  MILLISECONDS,
  PROBABILITY,
  TEXT,
  TokenStrip,
  chip,
  isControl,
  legend,
  level,
  percent,
  spelled,
} from "./tokens.mjs";

const LEAST = 6; // tokens that are listed as the least certain

/** Shows the tokens of one reply. They may come one after the other. */
export class CertaintyView {
  /** `onFork(index, choice)`: go on from another token; both are 0-based. */
  constructor(onFork) {
    this.onFork = onFork;
    this.perplexity = figure(
      "Perplexity",
      "Between how many equally likely tokens the model hesitated, on average; 1 is certainty. It is e to the power of " +
        "the mean of −ln(probability).",
    );
    this.mean = figure("Average", "The mean of the probabilities of this reply's tokens.");
    this.rare = figure(
      "Under 10 %",
      "Tokens with less than one chance in ten: a choice among many, or something that the model does not know.",
    );
    this.chart = new TokenChart({
      label: "Probability along the reply; Enter goes to the token",
      lowest: true,
      describe: (index) => this.#describe(this.tokens[index], index),
      onPick: (index) => this.open(index, true),
    });
    this.least = element("ol", { class: "least" });
    this.strip = new TokenStrip({
      label: "Tokens of the reply; Enter shows the alternatives",
      classes: (token) => level(token[PROBABILITY]) + (isControl(token) ? " control" : ""),
      describe: (token, index) => this.#describe(token, index),
      onSelect: (index, how) => {
        if (how !== "moved" || !this.card.hidden) this.open(index, false);
        if (how === "entered") this.card.focus();
      },
    });
    this.note = element(
      "p",
      { class: "muted" },
      "These are the tokens of the text as the model reads it, which may differ from those that it wrote.",
    );
    this.card = element("section", { class: "token-card", tabindex: "-1", hidden: true });
    const scroll = element(
      "div",
      { class: "inside-scroll" },
      element("div", { class: "figures" }, this.perplexity.root, this.mean.root, this.rare.root),
      element("h3", {}, "Probability along the reply"),
      this.chart.root,
      element("h3", {}, "Least certain tokens"),
      this.least,
      element("h3", {}, "Tokens"),
      this.note,
      legend(),
      this.strip.root,
    );
    this.root = element("div", { class: "certainty" }, scroll, this.card);
    this.root.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || this.card.hidden) return; // with the card closed, Escape closes the panel
      event.preventDefault();
      this.#close();
    });
    this.update = throttled(() => this.#update(), 200);
    this.reset([]);
  }

  /** Show these tokens. */
  reset(tokens) {
    this.tokens = [];
    this.probabilities = [];
    this.lowest = [];
    this.known = this.sum = this.surprise = this.unlikely = 0;
    this.strip.clear();
    this.opened = null;
    this.card.hidden = true;
    const written = tokens.some((token) => token[MILLISECONDS]); // it took time
    this.note.hidden = written || !tokens.length;
    this.append(tokens);
  }

  /** More tokens at the end. */
  append(tokens) {
    for (const token of tokens) {
      const probability = token[PROBABILITY];
      const index = this.tokens.push(token) - 1;
      this.probabilities.push(probability);
      if (probability === null) continue;
      this.known += 1;
      this.sum += probability;
      this.surprise -= Math.log(Math.max(probability, 1e-30));
      this.unlikely += probability < 0.1;
      if (this.lowest.length < LEAST || probability < this.probabilities[this.lowest.at(-1)]) {
        this.lowest.push(index);
        this.lowest.sort((a, b) => this.probabilities[a] - this.probabilities[b]);
        this.lowest.length = Math.min(this.lowest.length, LEAST);
      }
    }
    this.strip.append(tokens);
    this.update();
  }

  /** Whether the user may go on from another token now; otherwise the reason why not. */
  allow(reason) {
    this.reason = reason;
    for (const button of this.card.querySelectorAll("button.fork")) {
      button.disabled = Boolean(reason);
      button.title = reason;
    }
  }

  #describe(token, index) {
    if (!token) return "";
    return `${index + 1}: “${spelled(token[TEXT])}” ${percent(token[PROBABILITY])}`;
  }

  #update() {
    const known = this.known;
    this.perplexity.set(known ? Math.exp(this.surprise / known).toFixed(2) : "unknown");
    this.mean.set(known ? percent(this.sum / known) : "unknown");
    this.rare.set(known ? `${count(this.unlikely)} of ${count(known)}` : "unknown");
    this.chart.draw(this.probabilities, 1, 0.1);
    this.least.replaceChildren(
      ...this.lowest.map((index) => {
        const token = this.tokens[index];
        return element(
          "li",
          {},
          element(
            "button",
            {
              type: "button",
              class: "token-button",
              "aria-label": `Go to token ${this.#describe(token, index)}`,
              onclick: () => this.open(index, true),
            },
            chip(token),
            ` ${percent(token[PROBABILITY])}`,
          ),
        );
      }),
    );
  }

  /** Show a token's card; with `go`, move the focus to the token too. */
  open(index, go) {
    const token = this.tokens[index];
    if (!token) return;
    this.card.hidden = false;
    if (this.opened !== index) this.#fill(token, index);
    this.opened = index;
    this.strip.select(index);
    if (go) this.strip.focus(index);
    else this.strip.reveal(index);
  }

  #close() {
    this.card.hidden = true;
    this.strip.select(null);
    if (this.opened !== null) this.strip.focus(this.opened);
    this.opened = null;
  }

  #fill(token, index) {
    const alternatives = token[ALTERNATIVES] ?? [];
    const chosen = alternatives.findIndex(([text]) => text === token[TEXT]);
    const rows = alternatives.map((each, choice) => this.#alternative(index, choice, choice === chosen, each));
    if (chosen < 0) rows.push(this.#alternative(index, -1, true, [token[TEXT], token[PROBABILITY]]));
    const facts = [
      ["Probability", percent(token[PROBABILITY])],
      ["Id", token[ID] === null || token[ID] === undefined ? "unknown" : `${token[ID]}`],
      [index ? "Time" : "Since the message", token[MILLISECONDS] ? seconds(token[MILLISECONDS] / 1000) : "unknown"],
    ];
    this.card.setAttribute("aria-label", `Token ${index + 1}`);
    this.card.replaceChildren(
      element(
        "div",
        { class: "card-head" },
        element("h3", {}, `Token ${index + 1} `, chip(token)),
        iconButton("close", "Close the token's card", () => this.#close()),
      ),
      element(
        "dl",
        { class: "facts" },
        ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
      ),
      alternatives.length
        ? element("ol", { class: "alternatives", "aria-label": "What could have stood here" }, ...rows)
        : element("p", { class: "muted" }, "The alternatives to this token are not known."),
    );
    this.allow(this.reason);
  }

  #alternative(index, choice, chosen, [text, probability]) {
    const bar = element("span", { class: "share-bar", "aria-hidden": "true" });
    bar.style.setProperty("--share", probability ?? 0);
    return element(
      "li",
      chosen ? { class: "chosen" } : {},
      element("code", {}, spelled(text)),
      bar,
      element("span", { class: "number" }, percent(probability)),
      chosen
        ? element("span", { class: "muted" }, "in this reply")
        : button("Go on from here", () => this.onFork(index, choice), {
            class: "fork",
            "aria-label": `Go on from here with “${spelled(text)}”, ${percent(probability)}`,
          }),
    );
  }
}
