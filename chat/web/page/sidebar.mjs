// The list of conversations: by day, searched by title and text; new, rename, delete, import.

import * as api from "./base/api.mjs";
import { element } from "./base/dom.mjs";
import { editTitle, isWriting } from "./base/fields.mjs";
import { importConversation, takeDrops } from "./base/files.mjs";
import { menu } from "./base/menu.mjs";

const DAY = 86_400_000; // ms
const SLICE = 200; // conversations that are drawn at first, and each time the end comes into sight
const SEARCHED_AFTER = 250; // ms without typing
const month = new Intl.DateTimeFormat("en", { month: "long", year: "numeric" });

/** Fills the sidebar. What is drawn stays as it is while the list changes around it. */
export class Sidebar {
  rows = []; // as the server lists them, newest first
  #current = null;
  #drawn = SLICE; // how many conversations
  #items = new Map(); // id -> {node, link, json} of those that are drawn
  #groups = new Map(); // name -> {title, list}
  #editing = false; // a title
  #found = new Set(); // ids of conversations whose texts have what is searched
  #searching = false;
  #timer = 0;

  constructor(app) {
    this.app = app;
    this.list = document.getElementById("conversations");
    this.search = document.getElementById("search");
    this.end = element("p", { class: "none" });
    this.list.append(this.end);
    new IntersectionObserver(([entry]) => entry.isIntersecting && this.#drawMore()).observe(this.end);
    const sidebar = document.getElementById("sidebar");
    const picker = element("input", { type: "file", accept: ".json,application/json", multiple: true, hidden: true });
    sidebar.append(picker);
    picker.addEventListener("change", () => {
      this.#import([...picker.files]);
      picker.value = "";
    });
    takeDrops(sidebar, (files) => this.#import(files));
    const on = (id, action) => document.getElementById(id).addEventListener("click", action);
    on("import", () => picker.click());
    on("compare", () => (location.hash = `#/compare/${encodeURIComponent(this.#current ?? "")}`));
    on("new", () => app.newConversation());
    on("deleted", () => app.openDeleted());
    this.search.addEventListener("input", () => this.#search());
    this.search.addEventListener("keydown", (event) => this.#searchKey(event));
    this.list.addEventListener("keydown", (event) => this.#arrows(event));
  }

  /** Show this list of the server. */
  show(rows) {
    this.rows = rows;
    if (!this.#editing) this.draw();
  }

  /** Mark the conversation that is open. */
  select(id) {
    this.#items.get(this.#current)?.link.removeAttribute("aria-current");
    this.#current = id;
    this.#items.get(id)?.link.setAttribute("aria-current", "page");
  }

  /** The conversation before (-1) or after (1) the open one. */
  neighbour(step) {
    const rows = this.#matching();
    const index = rows.findIndex(({ id }) => id === this.#current);
    return rows[index < 0 ? 0 : index + step]?.id;
  }

  /** Bring the list up to date. What has the focus keeps it; if it is gone, its neighbour gets it. */
  draw() {
    const rows = this.#matching();
    const shown = rows.slice(0, this.#drawn);
    const focused = this.list.contains(document.activeElement) ? document.activeElement : null;
    const place = focused ? [...this.list.querySelectorAll("li")].indexOf(focused.closest("li")) : -1;
    const wanted = new Map(); // group -> nodes
    for (const row of shown) {
      const day = dayOf(new Date(row.updated));
      if (!wanted.has(day)) wanted.set(day, []);
      wanted.get(day).push(this.#item(row));
    }
    const kept = new Set(shown.map(({ id }) => id));
    for (const [id, { node }] of this.#items) {
      if (kept.has(id)) continue;
      node.remove();
      this.#items.delete(id);
    }
    const parts = [...wanted].flatMap(([name, nodes]) => {
      const group = this.#group(name);
      arrange(group.list, nodes);
      return [group.title, group.list];
    });
    this.#showEnd(rows.length, shown.length);
    arrange(this.list, [...parts, this.end]);
    if (!focused) return;
    const items = [...this.list.querySelectorAll("li")];
    if (!focused.isConnected) items[Math.min(place, items.length - 1)]?.querySelector("a").focus();
    else if (focused !== document.activeElement) focused.closest("li")?.querySelector("a").focus(); // it was moved
  }

  #showEnd(count, drawn) {
    const nothing = this.search.value ? "Nothing found" : "No conversations yet";
    this.end.textContent = count || this.#searching ? "" : nothing;
    this.end.classList.toggle("more", count > drawn);
  }

  #drawMore() {
    if (this.#drawn >= this.#matching().length || this.#editing) return;
    this.#drawn += SLICE;
    this.draw();
  }

  #matching() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = ({ id, title }) => {
      const lower = title.toLowerCase();
      return this.#found.has(id) || words.every((word) => lower.includes(word));
    };
    return words.length ? this.rows.filter(fits) : this.rows;
  }

  /** Show titles at once, and conversations whose texts have the words as soon as the server has found them. */
  #search() {
    const words = this.search.value.trim();
    this.#found = new Set();
    this.#searching = Boolean(words);
    this.#drawn = SLICE;
    this.draw();
    clearTimeout(this.#timer);
    if (!words) return;
    this.#timer = setTimeout(async () => {
      const found = await api.search(words).catch(() => ({ ids: [] })); // titles are better than nothing
      if (this.search.value.trim() !== words) return; // the user went on
      this.#found = new Set(found.ids);
      this.#searching = false;
      if (!this.#editing) this.draw();
    }, SEARCHED_AFTER);
  }

  #searchKey(event) {
    if (isWriting(event)) return;
    if (event.key === "Escape" && this.search.value) {
      event.preventDefault(); // it closes no drawer, and stops no reply
      this.search.value = "";
      this.#search();
    } else if (event.key === "Escape" && !this.app.drawer.covers) {
      event.preventDefault();
      this.app.focusComposer();
    } else if (event.key === "Enter" || event.key === "ArrowDown") {
      event.preventDefault();
      this.list.querySelector("a")?.[event.key === "Enter" ? "click" : "focus"]();
    }
  }

  #group(name) {
    if (!this.#groups.has(name)) {
      this.#groups.set(name, { title: element("h2", { text: name }), list: element("ul") });
    }
    return this.#groups.get(name);
  }

  /** The node of a conversation, up to date. */
  #item(row) {
    const json = JSON.stringify(row);
    const item = this.#items.get(row.id) ?? this.#newItem(row.id);
    if (item.json !== json) this.#fill(item, row);
    item.json = json;
    return item.node;
  }

  #newItem(id) {
    const link = element("a", { href: `#/c/${encodeURIComponent(id)}`, dir: "auto" });
    const row = () => this.rows.find((each) => each.id === id);
    const more = menu("dots", "More", () => [
      ["edit", "Rename", () => this.#rename(row(), link)],
      ["download", "Export as JSON", api.exportAddress(id, "json")],
      ["download", "Export as Markdown", api.exportAddress(id, "markdown")],
      ["trash", "Delete", () => this.app.deleteConversation(id, row()?.title || "(no title)")],
    ]);
    const item = { node: element("li", {}, link, more), link, more: more.firstElementChild, json: "" };
    if (id === this.#current) link.setAttribute("aria-current", "page");
    this.#items.set(id, item);
    return item;
  }

  #fill({ link, more }, { title, running }) {
    link.title = title;
    more.title = `More about ${title}`;
    more.setAttribute("aria-label", more.title);
    const dot = running ? element("span", { class: "dot", role: "img", "aria-label": "a reply is running" }) : "";
    link.replaceChildren(element("span", { text: title || "(no title)" }), dot);
  }

  #rename({ id, title }, link) {
    this.#editing = true;
    editTitle(link, "New title", title, async (changed, byKey) => {
      this.#editing = false;
      this.draw();
      if (byKey) link.focus();
      if (changed === null) return;
      await api.line(id, `/title ${changed}`, this.app.tab).catch((error) => this.app.toast("error", error.message));
    });
  }

  #arrows(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || event.altKey || !event.target.matches("a")) return;
    event.preventDefault();
    const links = [...this.list.querySelectorAll("li > a")];
    const index = links.indexOf(event.target) + step;
    (index < 0 ? this.search : links[index])?.focus();
  }

  async #import(files) {
    for (const file of files) {
      try {
        this.app.openConversation(await importConversation(file));
      } catch (error) {
        this.app.toast("error", error.message);
      }
    }
  }
}

/** Make `nodes` the children of `parent`, moving as few as possible. */
function arrange(parent, nodes) {
  const wanted = new Set(nodes);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  let next = parent.firstElementChild;
  for (const node of nodes) {
    if (node === next) next = next.nextElementSibling;
    else if (node.isConnected && parent.isConnected && parent.moveBefore)
      parent.moveBefore(node, next); // open menus stay
    else parent.insertBefore(node, next);
  }
}

function dayOf(date) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (date >= midnight) return "Today";
  if (date >= midnight - DAY) return "Yesterday";
  if (date >= midnight - 6 * DAY) return "This week";
  return month.format(date);
}
