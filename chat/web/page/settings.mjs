// The settings of a conversation, and the theme. Every change is sent as a command, and its answer shown beside it.

import { openDialog } from "./base/dialog.mjs";
import { button, element, iconButton } from "./base/dom.mjs";
import { openShortcuts } from "./shortcuts.mjs";
import { THEMES, setTheme, theme } from "./theme.mjs";

const STRATEGIES = {
  none: "Stop with an error; drop nothing.",
  truncate: "Drop the oldest turns, as few as needed.",
  sliding: "Drop the oldest turns until 60 % of the room is left filled; needed less often.",
  summarise: "As sliding, but the model first writes a summary of what is dropped.",
};

/** Open the settings of a pane's conversation. */
export async function openSettings(pane) {
  const dialog = new SettingsDialog(pane);
  await pane.create();
  await pane.ready;
  dialog.open();
}

class SettingsDialog {
  #fields = []; // {controls, show(snapshot)}
  #asking = null; // the control that waits for the answer to its command
  #last = Promise.resolve(); // the end of the command before
  #unsent = 0; // commands that have not ended
  #ids = 0;

  constructor(pane) {
    this.pane = pane;
    this.busy = element("p", { class: "busy", text: "A reply is running: settings can be changed when it has ended." });
    this.update = ({ detail }) => {
      if (["started", "snapshot"].includes(detail.type)) this.#show();
    };
  }

  open() {
    const { pane } = this;
    const parts = [this.#prompt(), this.#strategy(), this.#history(), this.#sampling(), this.#page()];
    this.#show();
    pane.container.addEventListener("event", this.update);
    pane.consumer = (notice) => this.#answer(notice);
    this.element = openDialog("settings", "Settings", this.busy, ...parts);
    this.element.addEventListener("close", () => {
      pane.container.removeEventListener("event", this.update);
      pane.consumer = null;
    });
  }

  /** Show what is in force, but leave a control that has an error, that is being used, or whose change is to come. */
  #show() {
    const { snapshot, running } = this.pane;
    this.busy.hidden = !running;
    for (const { controls, show } of this.#fields) {
      const used = controls.some((control) => control === document.activeElement && control.type !== "checkbox");
      const wrong = controls.some((control) => control.getAttribute("aria-invalid") === "true");
      if (!used && !wrong && !this.#unsent) show(snapshot);
      for (const control of controls) if (control !== document.activeElement) control.disabled = running;
    }
  }

  /** A label, a control, and the place for its answer. `show(snapshot)` sets the control. */
  #field(label, control, show, help) {
    const id = `setting-${++this.#ids}`;
    const status = element("p", { class: "status", id: `${id}-status`, role: "status" });
    control.id = id;
    control.setAttribute("aria-describedby", `${id}-help ${id}-status`);
    control.status = status;
    control.addEventListener("input", () => clear(control));
    this.#fields.push({ controls: [control], show });
    const title = element("label", { for: id, text: label });
    const about = element("span", { id: `${id}-help`, text: help });
    return { title, status, help: element("p", { class: "help" }, about) };
  }

  /** Send a command when nothing runs; its answer is shown beside `control`. */
  #send(control, line) {
    this.#unsent += 1;
    clear(control);
    this.#last = this.#last.then(async () => {
      if (this.pane.running) control.status.textContent = "Waits for the end of the reply";
      while (this.pane.running) await this.#nextSnapshot();
      control.status.textContent = "";
      this.#asking = control;
      const ended = this.#nextSnapshot();
      try {
        await this.pane.post(line);
        await ended;
      } catch (error) {
        if (!this.#answer({ kind: "error", text: error.message })) this.pane.show("error", error.message);
      }
      this.#unsent -= 1;
      this.#show();
    });
  }

  /** A command, or a reply, has ended when the next snapshot comes. */
  #nextSnapshot() {
    const { container } = this.pane;
    return new Promise((resolve) => {
      const look = ({ detail }) => {
        if (detail.type !== "snapshot") return;
        container.removeEventListener("event", look);
        resolve();
      };
      container.addEventListener("event", look);
    });
  }

  /** Show the answer to the command that was sent. Returns whether it can be seen here. */
  #answer({ kind, text }) {
    const control = this.#asking;
    this.#asking = null;
    if (!control || !this.element.open) return false;
    const failed = kind === "error";
    control.status.textContent = failed ? text : "Saved";
    control.status.classList.toggle("error", failed);
    control.setAttribute("aria-invalid", String(failed));
    return true;
  }

  #prompt() {
    const placeholder = "None; the model's template may have its own";
    const area = element("textarea", { class: "field", rows: 4, dir: "auto", placeholder });
    area.addEventListener("change", () => this.#send(area, `/system ${area.value.trim() || '""'}`));
    const show = ({ settings }) => (area.value = settings.system);
    const { title, status, help } = this.#field("System prompt", area, show, "Stands before the conversation.");
    return element("section", {}, title, help, area, status);
  }

  #strategy() {
    const status = element("p", { class: "status", role: "status" });
    const controls = this.pane.app.state.strategies.map((name) => {
      const input = element("input", { type: "radio", name: "strategy", value: name });
      input.addEventListener("change", () => this.#send(input, `/strategy ${name}`));
      input.status = status;
      return input;
    });
    const show = ({ settings }) => {
      for (const input of controls) input.checked = settings.strategy === input.value;
    };
    this.#fields.push({ controls, show });
    const choices = controls.map((input) => {
      const text = element("span", {}, element("b", { text: input.value }), ` ${STRATEGIES[input.value] ?? ""}`);
      return element("label", { class: "choice" }, input, text);
    });
    const legend = element("legend", { text: "When the window is full" });
    return element("fieldset", {}, legend, ...choices, status);
  }

  #history() {
    const input = element("input", { type: "checkbox", role: "switch" });
    input.addEventListener("change", () => this.#send(input, `/history ${input.checked ? "on" : "off"}`));
    const show = ({ settings }) => (input.checked = settings.history);
    const text = "On: the model gets the whole conversation. Off: only the current message.";
    const { title, status, help } = this.#field("History", input, show, text);
    return element("section", {}, element("div", { class: "row" }, title, input), help, status);
  }

  #sampling() {
    const rows = this.pane.app.state.parameters.map((parameter) => this.#parameter(parameter));
    return element("section", {}, element("h3", { text: "Sampling" }), ...rows);
  }

  #parameter(parameter) {
    const { name, kind } = parameter;
    const input = element("input", { class: "field", type: "number", step: kind === "integer" ? "1" : "any" });
    const send = (value) => this.#send(input, `/set ${name} ${value}`);
    input.addEventListener("change", () => send(input.value.trim() || "default"));
    const reset = iconButton("undo", `Reset ${name}`, () => {
      input.value = "";
      send("default");
    });
    input.addEventListener("input", () => (reset.disabled = false));
    const standard = element("span");
    const show = ({ settings, defaults }) => {
      const set = settings.sampling[name];
      const own = defaults[name] ?? parameter.default;
      input.value = set ?? "";
      input.placeholder = own ?? "none";
      standard.textContent = `${parameter.help && "; "}default ${own ?? "none"}`;
      reset.disabled = set === undefined;
    };
    const { title, help, status } = this.#field(name, input, show, parameter.help);
    help.append(standard);
    return element("div", { class: "parameter" }, element("div", { class: "row" }, title, input, reset), help, status);
  }

  #page() {
    const select = element("select", { class: "field", id: "setting-theme", onchange: () => setTheme(select.value) });
    select.append(...THEMES.map((name) => element("option", { value: name, text: name })));
    select.value = theme();
    const { api: address, version } = this.pane.app.state;
    const row = element("div", { class: "row" }, element("label", { for: select.id, text: "Theme" }), select);
    const keys = button("Keyboard shortcuts", openShortcuts);
    const about = `bareloop ${version ?? ""}${address ? `; its API is at ${address}` : ""}`;
    const title = element("h3", { text: "This page" });
    return element("section", {}, title, row, keys, element("p", { class: "help", text: about }));
  }
}

/** Take the answer to the change before away. */
function clear(control) {
  control.status.textContent = "";
  control.status.classList.remove("error");
  control.removeAttribute("aria-invalid");
}
