// The list of slash commands while one is being written.

import { element } from "../base/dom.mjs";
import { insertText } from "../base/fields.mjs";

let lists = 0;

/** Completes commands in a textarea; the list is `completion.element`. `commands()`: [{name, arguments, help}]. */
export class Completion {
  #matches = [];
  #chosen = 0;

  constructor(area, commands) {
    this.area = area;
    this.commands = commands;
    const id = `commands-${++lists}`;
    this.element = element("ul", { class: "completion", id, role: "listbox", "aria-label": "Commands", hidden: true });
    area.setAttribute("aria-controls", id);
    area.setAttribute("aria-autocomplete", "list");
    area.addEventListener("blur", () => this.close());
  }

  /** Show the commands that begin with what is written. */
  update() {
    const match = /^\/(\w*)$/.exec(this.area.value);
    this.#matches = match ? this.commands().filter(({ name }) => name.startsWith(match[1].toLowerCase())) : [];
    this.#chosen = 0;
    this.#draw();
  }

  /** Hide the list. */
  close() {
    this.#matches = [];
    this.#draw();
  }

  /** Use a key for the list. Returns whether it was one. */
  key(event) {
    const count = this.#matches.length;
    if (!count || event.shiftKey || event.altKey || event.ctrlKey || event.metaKey) return false;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      this.#chosen = (this.#chosen + step + count) % count;
      this.#draw();
      return true;
    }
    if (event.key === "Escape") {
      this.close();
      return true;
    }
    const chosen = this.#matches[this.#chosen];
    const complete = this.area.value === `/${chosen.name}`;
    if (event.key === "Tab" || (event.key === "Enter" && !complete)) {
      this.#take(chosen);
      return true;
    }
    return false;
  }

  #take({ name, arguments: rest }) {
    insertText(this.area, `/${name}${rest ? " " : ""}`, 0, this.area.value.length);
    this.close();
  }

  #draw() {
    this.element.hidden = !this.#matches.length;
    const options = this.#matches.map((entry, index) => {
      const usage = element("code", { text: `/${entry.name} ${entry.arguments}`.trim() });
      const option = element("li", { role: "option", id: `${this.element.id}-${index}` }, usage, ` ${entry.help}`);
      option.setAttribute("aria-selected", String(index === this.#chosen));
      option.addEventListener("mousedown", (event) => {
        event.preventDefault(); // the focus stays in the textarea
        this.#take(entry);
      });
      return option;
    });
    this.element.replaceChildren(...options);
    const chosen = options[this.#chosen];
    if (chosen) {
      this.area.setAttribute("aria-activedescendant", chosen.id);
      chosen.scrollIntoView({ block: "nearest" });
    } else this.area.removeAttribute("aria-activedescendant");
  }
}
