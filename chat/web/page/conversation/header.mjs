// The line above a conversation: title, model, how full the window is, and the menus.

import * as api from "../base/api.mjs";
import { button, element, iconButton } from "../base/dom.mjs";
import { editTitle } from "../base/fields.mjs";
import { bytes, count, throttled } from "../base/figures.mjs";
import { menu } from "../base/menu.mjs";

const FOLLOWS = 500; // ms between two updates of the meter while a reply runs

/** The header of a pane; the element is `header.element`. */
export class Header {
  /** The reply that is running has grown. */
  follow = throttled(() => this.#showMeter(), FOLLOWS);

  constructor(pane, compact) {
    this.pane = pane;
    this.title = element("h1", { class: "title", text: "New conversation", dir: "auto" });
    this.model = element("select", { class: "model", "aria-label": "Model", onchange: () => this.#change() });
    const about = { role: "meter", "aria-label": "Context window", "aria-valuemin": "0" };
    this.bar = element("span", { class: "bar" }, element("span", { class: "used" }));
    this.meterText = element("span");
    this.meter = element("div", { class: "meter", ...about }, this.bar, this.meterText);
    this.loadingText = element("span");
    this.progress = element("div", { class: "loading", role: "status", hidden: true });
    this.progress.append(element("progress", { "aria-label": "Loading the model" }), this.loadingText);
    const row = element("div", { class: "bar-row" }, this.title, this.model, this.meter, ...this.#buttons(compact));
    this.element = element("header", { class: "pane-header" }, row, this.progress);
    this.update();
  }

  #buttons(compact) {
    const { pane } = this;
    const inside = iconButton("inside", "Look inside the window", () => pane.look(null));
    if (compact) return [inside];
    const settings = iconButton("settings", "Settings", () => pane.app.openSettings(pane));
    const more = menu("dots", "More", () => {
      const ifThere = (action) => (pane.id === null ? null : action); // a new one has nothing yet
      const download = (format) => ifThere(pane.id === null ? null : api.exportAddress(pane.id, format));
      return [
        ["download", "Export as JSON", download("json")],
        ["download", "Export as Markdown", download("markdown")],
        ["compare", "Compare side by side", () => (location.hash = `#/compare/${encodeURIComponent(pane.id ?? "")}`)],
        ["edit", "Rename", ifThere(() => this.#rename())],
        ["trash", "Delete", ifThere(() => pane.app.deleteConversation(pane.id, this.title.textContent))],
      ];
    });
    return [inside, settings, more];
  }

  /** Show the pane's snapshot, or the state of a new conversation. */
  update() {
    const { snapshot, app } = this.pane;
    this.title.textContent = this.pane.title || "New conversation";
    this.#showModels(snapshot?.model ?? app.state.models[0]?.name ?? "");
    this.#showMeter();
  }

  /** Show how far a model is loaded. `event` is a loading event. */
  loading({ model, seconds, bytes: size, done }) {
    this.progress.hidden = done;
    // the seconds change twice a second; the line is announced only once
    this.progress.ariaLive = seconds >= 1 ? "off" : "polite";
    this.loadingText.textContent = `Loading ${model}: ${seconds.toFixed(0)} s${size ? `, ${bytes(size)}` : ""}`;
  }

  #rename() {
    editTitle(this.title, "Title", this.pane.title, (changed, byKey) => {
      if (byKey) this.pane.composer?.focus();
      if (changed !== null) this.pane.send(`/title ${changed}`, { quiet: true });
    });
  }

  async #change() {
    if (!(await this.pane.send(`/model ${this.model.value}`))) this.update();
  }

  #showModels(current) {
    const names = this.pane.app.state.models.map(({ name, about }) => [name, about]);
    if (current && !names.some(([name]) => name === current)) names.unshift([current, ""]);
    const json = JSON.stringify(names);
    if (json !== this.shownModels) {
      this.shownModels = json;
      const options = names.map(([name, about]) => element("option", { value: name, text: name, title: about ?? "" }));
      this.model.replaceChildren(...options);
    }
    this.model.value = current;
    this.model.title = names.find(([name]) => name === current)?.[1] || current;
    this.model.disabled = this.pane.running;
  }

  #showMeter() {
    const { snapshot } = this.pane;
    this.meter.hidden = !snapshot?.limit; // unknown until the model is loaded
    if (this.meter.hidden) return;
    const { limit, reserve, running } = snapshot;
    const used = snapshot.used + (running?.tokens.length ?? 0);
    const exact = snapshot.counts_exactly && !running; // the message of a running reply is counted at its end
    const room = `${count(reserve)} of them are kept free for the reply`;
    const text = `${exact ? "" : "about "}${count(used)} of ${count(limit)} tokens in the window are used; ${room}`;
    this.meter.setAttribute("aria-valuemax", limit);
    this.meter.setAttribute("aria-valuenow", Math.min(used, limit));
    this.meter.setAttribute("aria-valuetext", text);
    this.meter.title = text;
    const recalled = snapshot.memory?.recalled;
    const memories = recalled ? `, ${recalled === 1 ? "1 memory" : `${count(recalled)} memories`}` : "";
    const rest = element("span", { class: "unit", text: ` tokens in the window${memories}` });
    this.meterText.replaceChildren(`${exact ? "" : "≈ "}${count(used)} / ${count(limit)}`, rest);
    this.bar.style.setProperty("--used", `${Math.min(100, (100 * used) / limit)}%`);
    this.meter.classList.toggle("full", used > limit - reserve);
  }
}

/** A line with a problem and a button that removes it. */
export function problem(kind, text, ...actions) {
  const line = element("div", { class: `problem ${kind}`, role: kind === "error" ? "alert" : "status" });
  const close = iconButton("close", "Dismiss", () => line.remove());
  line.append(element("span", { text, dir: "auto" }), ...actions.map(([label, run]) => button(label, run)), close);
  return line;
}
