// The panel "Inside the model": a reply's tokens, the window and the cost. It follows the conversation as it streams.

import { CertaintyView } from "./certainty.mjs";
import { CostView } from "./cost.mjs";
import { element, iconButton } from "../base/dom.mjs";
import { placeholder } from "../base/figures.mjs";
import { ALTERNATIVES, PROBABILITY, TEXT } from "./tokens.mjs";
import { WindowView } from "./window.mjs";

const NARROW = matchMedia("(max-width: 1100px)"); // there the panel covers the page, as in the stylesheet
const COVERED = "body > :is(.skip, #menu, #sidebar, #shade, #main)";

let panel = null;

/** Open the panel for a turn of this pane (0-based), or for its window if `turn` is null. */
export function openInside(app, pane, turn) {
  if (!pane.container.isConnected) return; // the user has gone on while this module was loaded
  const opener = panel?.opener?.isConnected ? panel.opener : document.activeElement;
  if (panel && panel.pane !== pane) panel.close(false);
  panel ??= new Panel(app, pane);
  panel.opener = opener;
  panel.open(turn);
}

/** Close the panel if it is open, as when the route changes. */
export function closeInside() {
  panel?.close(false);
}

/** Tabs with the keyboard behaviour of the ARIA pattern: arrows, Home and End move and choose. */
class Tabs {
  constructor(label, views, onChange) {
    this.views = views;
    this.onChange = onChange;
    this.buttons = Object.keys(views).map((name) =>
      element(
        "button",
        {
          type: "button",
          role: "tab",
          id: `tab-${name}`,
          "aria-controls": `panel-${name}`,
          onclick: () => this.choose(name),
        },
        views[name].label,
      ),
    );
    this.list = element("div", { class: "tabs", role: "tablist", "aria-label": label }, ...this.buttons);
    this.panels = Object.entries(views).map(([name, { content }]) =>
      element(
        "div",
        {
          class: "tab-panel",
          role: "tabpanel",
          id: `panel-${name}`,
          "aria-labelledby": `tab-${name}`,
        },
        content,
      ),
    );
    this.list.addEventListener("keydown", (event) => {
      const names = Object.keys(views);
      const at = names.indexOf(this.chosen);
      const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: names.length - 1 }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      this.choose(names.at(next % names.length));
      this.buttons[Object.keys(views).indexOf(this.chosen)].focus();
    });
  }

  choose(name) {
    this.chosen = name;
    Object.keys(this.views).forEach((each, index) => {
      const selected = each === name;
      this.buttons[index].setAttribute("aria-selected", `${selected}`);
      this.buttons[index].tabIndex = selected ? 0 : -1;
      this.panels[index].hidden = !selected;
    });
    this.onChange(name);
  }
}

class Panel {
  constructor(app, pane) {
    Object.assign(this, { app, pane, tokens: [], key: null, costs: null, costsOf: "", stream: null, ended: null });
    this.certainty = new CertaintyView((index, choice) => this.#fork(index, choice));
    this.cost = new CostView((index) => {
      this.tabs.choose("reply");
      this.certainty.open(index, true);
    });
    this.window = new WindowView((scored) => app.api.window_(pane.id, scored));
    this.replyBox = element("div", { class: "fill" });
    this.tabs = new Tabs(
      "What to look at",
      {
        reply: { label: "Reply", content: this.replyBox },
        window: { label: "Window", content: this.window.root },
        cost: { label: "Cost", content: this.cost.root },
      },
      () => this.#draw(),
    );
    this.title = element("h2", { tabindex: "-1" }, "Inside the model");
    this.name = element("span", { "aria-live": "polite" });
    this.before = iconButton("left", "The reply before", () => this.#turn(this.turn - 1));
    this.after = iconButton("right", "The next reply", () => this.#turn(this.turn + 1));
    this.steps = element("div", { class: "steps" }, this.before, this.name, this.after);
    this.aside = document.getElementById("inside");
    this.aside.replaceChildren(
      element(
        "header",
        { class: "inside-head" },
        this.title,
        iconButton("close", "Close Inside", () => this.close()),
      ),
      this.tabs.list,
      this.steps,
      ...this.tabs.panels,
    );
    this.onReceived = (event) => this.#received(event.detail);
    this.onKey = (event) => {
      if (event.key !== "Escape" || event.defaultPrevented) return;
      event.preventDefault();
      this.close();
    };
    this.onLostKey = (event) => {
      if (this.isModal && event.target === document.body) this.onKey(event); // what had the focus is gone
    };
    this.onWidth = () => this.#cover(NARROW.matches);
    pane.container.addEventListener("event", this.onReceived);
    this.aside.addEventListener("keydown", this.onKey);
    document.addEventListener("keydown", this.onLostKey, true); // before the keys of the page
    NARROW.addEventListener("change", this.onWidth);
  }

  open(turn) {
    this.aside.hidden = false;
    this.#cover(NARROW.matches);
    this.#join();
    Object.assign(this, { turn: turn ?? this.stream?.turn ?? this.#count() - 1, key: null, ended: null });
    this.tabs.choose(turn === null ? "window" : this.tabs.chosen === "cost" ? "cost" : "reply");
    this.title.focus({ preventScroll: true });
  }

  close(focus = true) {
    this.pane.container.removeEventListener("event", this.onReceived);
    this.aside.removeEventListener("keydown", this.onKey);
    document.removeEventListener("keydown", this.onLostKey, true);
    NARROW.removeEventListener("change", this.onWidth);
    this.#cover(false);
    this.aside.hidden = true;
    this.aside.replaceChildren();
    panel = null;
    if (focus && this.opener?.isConnected) this.opener.focus();
  }

  /** Be a modal dialog, or a part of the page. `data-modal` says which to others. */
  #cover(modal) {
    this.isModal = modal;
    this.aside.toggleAttribute("data-modal", modal);
    for (const [name, value] of [
      ["role", "dialog"],
      ["aria-modal", "true"],
    ]) {
      if (modal) this.aside.setAttribute(name, value);
      else this.aside.removeAttribute(name);
    }
    for (const each of document.querySelectorAll(COVERED)) each.inert = modal;
  }

  /** Number of replies, with the one that is running. */
  #count() {
    const snapshot = this.pane.snapshot;
    return Math.max(snapshot?.turns.length ?? 0, this.#running() + 1);
  }

  /** The turn whose reply is running; -1 if none is. */
  #running() {
    return this.stream?.turn ?? -1;
  }

  #turn(index) {
    Object.assign(this, { turn: index, key: null, ended: null });
    this.#draw();
  }

  /** Draw the tab that is shown; load what it needs. */
  #draw() {
    const snapshot = this.pane.snapshot;
    if (!snapshot) return;
    this.#join();
    const all = this.#count();
    this.turn = Math.max(0, Math.min(this.turn, all - 1));
    this.steps.hidden = this.tabs.chosen === "window";
    this.before.disabled = this.turn <= 0;
    this.after.disabled = this.turn >= all - 1;
    const version = this.#running() === this.turn ? null : snapshot.turns[this.turn]?.version;
    const which = version?.[1] > 1 ? `, version ${version[0] + 1} of ${version[1]}` : "";
    this.name.textContent = all ? `Reply ${this.turn + 1} of ${all}${which}` : "No reply yet";
    if (this.tabs.chosen === "window") {
      if (this.windowOf !== snapshot) this.window.show(snapshot, Boolean(this.stream));
      this.windowOf = this.stream ? null : snapshot;
      return;
    }
    this.#load();
    if (this.tabs.chosen === "cost") this.#costs();
  }

  /** Follow the reply that is running, if there is one. */
  #join() {
    const running = this.pane.snapshot?.running;
    if (!this.stream && running) this.#follow(running.turn, running.tokens);
  }

  /** The tokens of a reply that is running, to which its pieces are added; `whole`: from its first token on. */
  #follow(turn, tokens, whole = false) {
    this.stream = { turn, tokens: [...tokens], whole };
  }

  /** Get the tokens of the turn that is shown, unless they are here. */
  async #load(compute = false) {
    this.request = null;
    const snapshot = this.pane.snapshot;
    const turn = snapshot.turns[this.turn];
    if (this.#running() === this.turn) return this.#show(this.stream.tokens);
    if (!turn || turn.reply === null) return this.#say("There is no reply here yet.");
    if (this.key === turn.key && !compute) return this.#show(this.tokens);
    const streamed = this.ended === this.turn; // its tokens are on screen; what is stored replaces them if it differs
    if (!turn.recorded && !compute) {
      const unknown = "The probabilities of this reply were not recorded.";
      if (snapshot.can_score) return this.#say(unknown, "Compute them", () => this.#load(true));
      if (streamed && this.tokens.length) return this.#show(this.tokens); // without probabilities, but with times
      return this.#say(`${unknown} The server of this model cannot compute them.`);
    }
    if (!streamed) this.#say(turn.recorded ? "Loading …" : "Computing: the model reads the conversation once …");
    const request = (this.request = Symbol("request"));
    try {
      const data = await this.app.api.tokens(this.pane.id, this.turn);
      if (request !== this.request) return undefined; // another one is under way
      this.key = turn.key;
      return this.#show(data.tokens);
    } catch (error) {
      if (request === this.request) this.#say(error.message, "Try again", () => this.#load(compute));
      return undefined;
    }
  }

  /** Show these tokens of the turn. Those that are on screen already stay there, with the focus and the card. */
  #show(tokens) {
    const same =
      tokens === this.tokens ||
      (tokens.length === this.tokens.length &&
        tokens.every(
          (token, index) =>
            token[TEXT] === this.tokens[index][TEXT] && token[PROBABILITY] === this.tokens[index][PROBABILITY],
        ));
    if (!same) this.certainty.reset(tokens);
    this.tokens = tokens;
    if (this.certainty.root.parentNode !== this.replyBox) this.replyBox.replaceChildren(this.certainty.root);
    this.certainty.allow(this.stream ? "A reply is running: wait for its end, or stop it" : "");
    const statistics = this.#running() === this.turn ? null : (this.pane.snapshot.turns[this.turn]?.statistics ?? null);
    this.cost.show(tokens, statistics, this.costs);
  }

  #say(text, action = "", onclick = null) {
    Object.assign(this, { tokens: [], ended: null });
    this.certainty.reset([]);
    this.cost.show([], this.pane.snapshot.turns[this.turn]?.statistics ?? null, this.costs);
    this.replyBox.replaceChildren(placeholder(text, action, onclick));
  }

  /** What a token costs does not depend on the reply: it is asked for once per model. */
  async #costs() {
    const model = this.pane.snapshot.model;
    if (this.costsOf === model) return;
    this.costsOf = model;
    try {
      this.costs = await this.app.api.costs(this.pane.id);
    } catch (error) {
      this.costsOf = ""; // ask again when something has changed
      this.costs = { problem: error.message };
    }
    this.cost.show(this.cost.tokens, this.cost.statistics, this.costs);
  }

  async #fork(index, choice) {
    const { [ALTERNATIVES]: alternatives } = this.tokens[index];
    const [text, probability] = alternatives[choice];
    const kept = [...this.tokens.slice(0, index), [text, text, probability, alternatives, 0, null]];
    const forked = (this.forked = { turn: this.turn, tokens: kept });
    const taken = await this.pane.send(`/fork ${this.turn + 1} ${index + 1} ${choice + 1}`);
    if (!taken && this.forked === forked) this.forked = null;
  }

  #received(event) {
    if (event.type === "started") {
      const forked = this.forked?.turn === event.turn ? this.forked : null;
      const continued = event.beginning && !forked && this.turn === event.turn ? this : null;
      const begun = forked ?? continued;
      this.#follow(event.turn, begun?.tokens ?? [], !event.beginning);
      Object.assign(this, { turn: event.turn, key: null, forked: null });
      this.#draw();
    } else if (event.type === "piece" && this.stream) {
      for (const token of event.tokens) this.stream.tokens.push(token);
      if (this.turn !== this.stream.turn) return;
      this.certainty.append(event.tokens);
      this.cost.update();
    } else if (event.type === "snapshot") {
      const { turn, tokens, whole } = this.stream ?? {};
      const known = whole && typeof tokens[0]?.[PROBABILITY] === "number";
      const key = known && turn === this.turn ? event.value.turns[turn]?.key : null;
      if (this.stream) Object.assign(this, { ended: turn, key });
      this.forked = null; // nothing came of it, if a reply did not begin
      this.stream = null; // if a reply is running still, the snapshot has its tokens so far
      this.#draw();
    } else if (event.type === "deleted") this.close();
  }
}
