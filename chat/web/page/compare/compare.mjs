// Two conversations side by side with one composer: the same message to two models, or to one with two settings.

import { Composer } from "../conversation/composer.mjs";
import { ConversationPane } from "../conversation/conversation.mjs";
import { comparison } from "./difference.mjs";
import { button, element, iconButton } from "../base/dom.mjs";
import { closeInside, openInside } from "../inside/inside.mjs";

const NAMES = ["A", "B"];
const FINE = matchMedia("(pointer: fine)"); // elsewhere the focus opens the screen's keyboard

const address = (id) => (id === null ? "#/" : `#/c/${encodeURIComponent(id)}`);

/**
 * Show the conversations `first` and `second` in `main`; returns {close()}. Without `second`, make a copy of the first,
 * or without `first` two new conversations, and go to their address. Does nothing once the user has gone elsewhere.
 */
export async function openCompare(app, first, second, main) {
  if (second !== undefined) return new Comparison(app, [first, second], main);
  const here = location.hash;
  try {
    const one = first ?? (await app.api.create()).id;
    const { id: other } = await app.api.create(first === null ? {} : { copy_of: first });
    if (location.hash === here) location.replace(`#/compare/${encodeURIComponent(one)}/${encodeURIComponent(other)}`);
  } catch (error) {
    app.toast("error", error.message);
    if (location.hash === here) location.replace(address(first));
  }
  return null;
}

/** One of the two: its quick settings and its pane. */
class Side {
  hasRun = false; // whether a reply was begun since the two are shown

  constructor(app, id, name) {
    const container = element("section", {});
    this.pane = new ConversationPane(container, app, id, { compact: true });
    this.history = element("input", {
      type: "checkbox",
      onchange: () => this.pane.send(`/history ${this.history.checked ? "on" : "off"}`),
    });
    this.temperature = element("input", {
      type: "number",
      class: "field",
      min: "0",
      step: "0.1",
      onchange: () => this.pane.send(`/set temperature ${this.temperature.value.trim() || "default"}`),
    });
    const settings = button(`Settings of ${name}`, () => app.openSettings(this.pane));
    const quick = element(
      "div",
      { class: "side-settings" },
      element("b", { "aria-hidden": "true" }, name),
      element("label", {}, this.history, "History"),
      element("label", {}, "Temperature", this.temperature),
      settings,
    );
    this.root = element("section", { class: "side", "aria-label": `Side ${name}` }, quick, container);
    container.addEventListener("inside", ({ detail }) => openInside(app, this.pane, detail.turn));
  }

  /** Draw an event of the stream. */
  receive(event) {
    this.pane.receive(event);
    if (event.type === "started") {
      this.hasRun = true;
      this.pane.follower.toEnd();
    } else if (event.type === "snapshot") {
      this.hasRun ||= Boolean(event.value.running);
      this.#settings(event.value);
    }
  }

  /** The last turn, if its reply was begun here, and has ended. */
  get last() {
    return this.pane.running || !this.hasRun ? null : (this.pane.snapshot?.turns.at(-1) ?? null);
  }

  #settings({ settings, running }) {
    this.history.checked = settings.history;
    if (document.activeElement !== this.temperature) this.temperature.value = settings.sampling.temperature ?? "";
    this.temperature.placeholder = `default ${this.pane.inForce("temperature") ?? ""}`.trim();
    for (const control of [this.history, this.temperature]) control.disabled = Boolean(running);
  }
}

/** Both sides, the composer that sends to both (it takes this for its pane), and the line that compares them. */
class Comparison {
  id = "compare"; // under which the composer keeps its draft

  constructor(app, ids, main) {
    this.app = app;
    this.sides = ids.map((id, index) => new Side(app, id, NAMES[index]));
    this.container = element("div", { class: "compare" });
    const about = { "aria-label": "Comparison", "aria-live": "polite" };
    this.verdict = element("section", { class: "compared", hidden: true, ...about });
    this.about = element(
      "p",
      { class: "compared" },
      "Write one message: both sides answer it. Give them different models, or the same model with other settings, " +
        "and see where the replies part. Each side is a conversation of its own.",
    );
    this.composer = new Composer(this);
    this.shown = NAMES.map((name, index) =>
      element(
        "button",
        {
          type: "button",
          class: "button",
          "aria-label": `Show side ${name}`,
          onclick: () => this.#show(index),
        },
        name,
      ),
    );
    const close = iconButton("close", "Close the comparison", () => {
      location.hash = address(ids[0]);
    });
    this.both = element("div", { class: "sides" }, ...this.sides.map((side) => side.root));
    const choice = { class: "side-choice", role: "group", "aria-label": "Side that is shown" };
    this.container.append(
      element(
        "header",
        { class: "compare-head" },
        element("h1", {}, "Side by side"),
        element("div", choice, ...this.shown),
        close,
      ),
      this.both,
      this.about,
      this.verdict,
      this.composer.element,
    );
    this.#show(0);
    this.container.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.defaultPrevented || !this.running) return;
      event.preventDefault();
      this.stop();
    });
    main.replaceChildren(this.container);
    this.unwatch = app.watch(ids, (event) => this.#receive(event));
    if (FINE.matches) this.composer.focus();
  }

  /** Whether a reply is running on either side. */
  get running() {
    return this.sides.some((side) => side.pane.running);
  }

  /** Whether one of the models sees images. */
  get takesImages() {
    return this.sides.some((side) => side.pane.takesImages);
  }

  /** Send a line to both. Returns whether one of them took it; the other shows why it did not. */
  async send(line, options) {
    const taken = await Promise.all(this.sides.map((side) => side.pane.send(line, options)));
    return taken.some(Boolean);
  }

  /** Stop both. */
  async stop() {
    await Promise.all(this.sides.map((side) => side.pane.stop()));
  }

  /** The last message is edited on its own side. */
  editLast() {}

  /** Stop drawing. */
  close() {
    this.unwatch();
    closeInside();
    this.composer.close();
    for (const side of this.sides) side.pane.close();
  }

  /** On a narrow screen there is room for one side. */
  #show(index) {
    this.both.dataset.shown = NAMES[index];
    this.shown.forEach((each, at) => each.setAttribute("aria-pressed", String(at === index)));
  }

  #receive(event) {
    // a message that got no reply; one of no tab is told once, to the tab that comes next
    if (event.type === "draft" && (!event.tab || event.tab === this.app.tab)) this.composer.takeBack(event);
    for (const side of this.sides) if (side.pane.id === event.conversation) side.receive(event);
    if (event.type === "started" || event.type === "snapshot") {
      this.composer.update();
      this.#compare();
    }
  }

  #compare() {
    const [one, other] = this.sides.map((side) => side.last);
    const same = one?.message === other?.message && JSON.stringify(one?.images) === JSON.stringify(other?.images);
    const comparable = one?.reply && other?.reply && same;
    this.verdict.hidden = !comparable;
    this.verdict.replaceChildren(...(comparable ? comparison(one, other) : []));
    this.about.hidden = this.sides.some((side) => side.hasRun);
  }
}
