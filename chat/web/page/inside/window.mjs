// The tab "Window" of "Inside": the prompt as the model sees it, where its tokens came from, and what left it.

import { element } from "../base/dom.mjs";
import { count, placeholder, radios, stack } from "../base/figures.mjs";
import { visible } from "../base/plain.mjs";
import { firstSeen, spoken } from "../base/snapshot.mjs";
import {
  ID,
  PROBABILITY,
  TEXT,
  TokenStrip,
  isBracketed,
  isOfTemplate,
  legend,
  level,
  percent,
  spelled,
} from "./tokens.mjs";

const RUN = 500; // characters after which a run of text ends at the next line break
const LONGEST_RUN = 2000;

/**
 * How many tokens the parts of a prompt have: [{kind, turn?, tokens}]. `texts`: of its tokens.
 *
 * The parts are found by their texts, in order; a part begins after the control token that ends the part before.
 */
export function partition(texts, snapshot) {
  const whole = texts.join("");
  const shown = firstSeen(snapshot);
  const wanted = [
    { kind: "system", text: snapshot.settings.system },
    { kind: "summary", text: snapshot.settings.history ? snapshot.summary : "" },
    ...snapshot.turns
      .slice(shown)
      .flatMap((turn, index) =>
        [turn.message, turn.reply].map((text) => ({ kind: "dialogue", turn: shown + index, text })),
      ),
  ].filter((part) => part.text?.trim());
  const parts = [];
  let character = 0; // where the search begins, and the same place as a number of tokens
  let token = 0;
  let length = 0;
  let begin = 0;
  for (const part of wanted) {
    const text = part.text.trim();
    const at = whole.indexOf(text, character);
    if (at < 0) continue;
    character = at + text.length;
    while (token < texts.length && length < character) length += texts[token++].length;
    if (token < texts.length && isOfTemplate(texts[token])) {
      length += texts[token++].length;
      while (token < texts.length && texts[token].trim() === "") length += texts[token++].length;
    }
    const last = parts.at(-1);
    if (last?.kind === "dialogue" && last.turn === part.turn) last.tokens += token - begin;
    else parts.push({ ...part, tokens: token - begin });
    begin = token;
  }
  if (parts.length) parts.at(-1).tokens += texts.length - begin;
  return parts;
}

/** Tokens as [text] with {from, to}; one that repeats, as an image's do, is one item with {times}. */
function items(tokens, source) {
  const result = [];
  tokens.forEach((token, index) => {
    const text = token[TEXT];
    const last = result.at(-1);
    if (last?.token === text && isBracketed(text) && source(last.from) === source(index)) {
      last.to = index;
      last.times = index - last.from + 1;
      last[TEXT] = `${text} × ${count(last.times)}`;
    } else result.push(Object.assign([text], { token: text, from: index, to: index, times: 1 }));
  });
  return result;
}

/** Whether an item is shown as a control token. */
const isAlone = (item) => item.times > 1 || isOfTemplate(item[TEXT]);

/** Merge items of one source to runs of text, [text] with {from, to}; control tokens stay alone. */
function runs(parts, source) {
  const result = [];
  let run = null;
  let length = 0;
  parts.forEach((part, index) => {
    const text = part[TEXT];
    const kind = isAlone(part) ? null : source(part.from);
    const full = length > LONGEST_RUN || (length > RUN && parts[index - 1][TEXT].endsWith("\n"));
    if (!run || kind === null || run.kind !== kind || full) {
      run = Object.assign([""], { kind, from: part.from, times: part.times });
      result.push(run);
      length = 0;
    }
    run[TEXT] += text;
    run.to = part.to;
    length += text.length;
  });
  return result;
}

/** Shows the window of one conversation. */
export class WindowView {
  /** `load(scored)`: GET window. */
  constructor(load) {
    this.load = load;
    this.view = "tokens";
    this.colour = "source";
    this.overview = element("div", { class: "overview" });
    this.counts = element("p", {});
    this.scale = element("div", {});
    this.area = element("div", {});
    this.root = element(
      "div",
      { class: "inside-scroll" },
      element("h3", {}, "What the window holds"),
      this.overview,
      element("h3", {}, "The prompt, as the model reads it"),
      element(
        "div",
        { class: "switches" },
        radios("Show", ["tokens", "text"], (value) => this.#switch("view", value)),
        radios("Colour by", ["source", "probability"], (value) => this.#switch("colour", value)),
      ),
      this.counts,
      this.scale,
      this.area,
    );
  }

  /** Show the window of this snapshot; while a reply is `running`, only what the snapshot says of it. */
  async show(snapshot, running = false) {
    Object.assign(this, { snapshot, running });
    this.#overview([]);
    if (!snapshot.turns.length) return this.#say("There is no prompt yet: send a message first.");
    if (running) return this.#say("A reply is running. The window is shown when it has ended.");
    const scored = this.colour === "probability";
    this.#say(scored ? "Computing: the model reads the whole prompt once …" : "Loading …");
    const request = (this.request = Symbol("request"));
    let data;
    try {
      data = await this.load(scored);
    } catch (error) {
      if (request === this.request) this.#say(error.message, "Try again", () => this.show(this.snapshot));
      return undefined;
    }
    if (request !== this.request) return undefined; // a later one is under way
    this.data = data;
    this.#overview(
      partition(
        data.tokens.map((token) => token[TEXT]),
        snapshot,
      ),
    );
    return this.#draw();
  }

  #say(text, action = "", onclick = null) {
    this.request = this.data = null;
    this.counts.textContent = "";
    this.strip?.clear();
    this.scale.replaceChildren();
    this.area.replaceChildren(placeholder(text, action, onclick));
  }

  #switch(name, value) {
    this[name] = value;
    const scored = this.data?.tokens.some((token) => token[PROBABILITY] !== null);
    if (this.data && (this.colour === "source" || scored)) this.#draw();
    else this.show(this.snapshot, this.running);
  }

  /** Where a token came from; "" as far as the server cannot say it. */
  #source(index) {
    const { cached, prompt } = this.data;
    if (prompt === null) return "";
    if (index >= prompt) return "decoded";
    if (cached === null) return "";
    return index < cached ? "cached" : "computed";
  }

  /** The same in words, and [source, number of tokens] of those that are known. */
  #sources() {
    const { tokens, cached, prompt } = this.data;
    if (prompt === null) return ["Which of these tokens were cached is not known.", []];
    const decoded = tokens.length - prompt;
    const since = `${count(decoded)} were decoded since.`;
    if (cached === null) {
      return [
        `How many of ${count(prompt)} tokens of the last prompt were cached is not known; ${since}`,
        [["decoded", decoded]],
      ];
    }
    const computed = prompt - cached;
    return [
      `Of ${count(prompt)} tokens of the last prompt ${count(cached)} were cached, ` +
        `${count(computed)} computed; ${since}`,
      [
        ["cached", cached],
        ["computed", computed],
        ["decoded", decoded],
      ],
    ];
  }

  #draw() {
    const { tokens } = this.data;
    const [words, sources] = this.#sources();
    this.counts.textContent = words;
    const byProbability = this.colour === "probability";
    this.scale.replaceChildren(
      byProbability
        ? legend()
        : element(
            "ul",
            { class: "sources" },
            ...sources.map(([name, number]) =>
              element("li", {}, element("span", { class: `token ${name}` }, name), ` ${count(number)}`),
            ),
          ),
    );
    const text = this.view === "text";
    const kind = byProbability ? (index) => level(tokens[index][PROBABILITY]) : (index) => this.#source(index);
    const source = (index) => this.#source(index);
    const parts = items(tokens, source);
    const shown = text ? runs(parts, source) : parts;
    this.strip?.clear();
    this.strip = new TokenStrip({
      label: text ? "The prompt as text" : "Tokens of the prompt",
      classes: (item) => {
        const colour = text && byProbability ? "" : kind(item.from);
        return isAlone(item) ? `${colour} control` : colour;
      },
      describe: (item) => this.#describe(item, item.from),
      ...(text ? { text: (item) => visible(item[TEXT]) } : {}),
    });
    this.area.replaceChildren(this.strip.root);
    this.strip.append(shown);
  }

  #describe(item, index) {
    const where = this.#source(index) || "source unknown";
    if (item.to > item.from) return `tokens ${count(item.from + 1)} to ${count(item.to + 1)}: ${where}`;
    const token = this.data.tokens[index];
    const id = token[ID] === null || token[ID] === undefined ? "" : `id ${token[ID]}, `;
    const probability = token[PROBABILITY] === null ? "" : `, ${percent(token[PROBABILITY])}`;
    return `${count(index + 1)}: “${spelled(token[TEXT])}” ${id}${where}${probability}`;
  }

  #overview(parts) {
    const { used, limit, reserve, turns, summary, settings, counts_exactly: exact } = this.snapshot;
    if (!limit) {
      this.overview.replaceChildren(placeholder("The size of the window is not known until the model is loaded."));
      return;
    }
    const sizes = (kind) => parts.filter((part) => part.kind === kind).map((part) => part.tokens);
    const rest = used - parts.reduce((sum, part) => sum + part.tokens, 0);
    const groups = [
      ["system", "System prompt", sizes("system")],
      ["summary", "Summary", sizes("summary")],
      ["dialogue", "Turns", parts.length ? sizes("dialogue") : [used]],
      ["rest", "Not yet counted", parts.length && rest > 0 ? [rest] : []],
      ["reserve", "Kept free for the reply", [reserve]],
      ["free", "Free", [Math.max(0, limit - reserve - used)]],
    ].filter(([, , tokens]) => tokens.length);
    const bar = stack(groups.flatMap(([kind, , tokens]) => tokens.map((part) => [kind, part / limit])));
    const list = groups.map(([kind, name, tokens]) =>
      element(
        "li",
        {},
        element("span", { class: `part ${kind}` }),
        `${name} `,
        element("b", {}, count(tokens.reduce((sum, part) => sum + part))),
      ),
    );
    const hidden = firstSeen(this.snapshot);
    const tokensOf = new Map(parts.map((part) => [part.turn, part.tokens]));
    const size = (turn) => (tokensOf.has(turn) ? `${count(tokensOf.get(turn))} tokens` : "");
    const fold = (title, from, to, about = null) =>
      from === to
        ? null
        : element(
            "details",
            { class: "turn-list" },
            element("summary", {}, `${title}: ${count(to - from)}`),
            about,
            element(
              "ul",
              {},
              ...turns
                .slice(from, to)
                .map((turn, index) =>
                  element(
                    "li",
                    {},
                    `${from + index + 1}`,
                    element("span", { class: "excerpt" }, visible(spoken(turn).slice(0, 120))),
                    element("span", { class: "muted" }, size(from + index)),
                  ),
                ),
            ),
          );
    const reason = settings.history ? "They left when the window was full." : "The history is off.";
    this.overview.replaceChildren(
      ...[
        element("p", {}, `${exact ? "" : "About "}${count(used)} of ${count(limit)} tokens are used.`),
        bar,
        element("ul", { class: "parts" }, ...list),
        fold("Turns in the window", hidden, turns.length),
        fold("Turns that the model does not see", 0, hidden, element("p", { class: "muted" }, reason)),
        ...(summary && settings.history
          ? [element("p", {}, "Their summary:"), element("blockquote", {}, visible(summary))]
          : []),
      ].filter(Boolean),
    );
  }
}
