// A button that opens a list of actions.

import { element, icon, iconButton } from "./dom.mjs";

let menus = 0;

/** A button that opens a list of `entries()`: [icon, label, action], where an action is a function, the address of a
 *  download, or null for what cannot be done now. */
export function menu(name, label, entries) {
  const list = element("div", { class: "menu", popover: "auto", id: `menu-${++menus}` });
  const opener = iconButton(name, label, null, { popovertarget: list.id, "aria-expanded": "false" });
  list.addEventListener("beforetoggle", (event) => {
    opener.setAttribute("aria-expanded", String(event.newState === "open"));
    if (event.newState !== "open") return;
    list.replaceChildren(...entries().map(([symbol, text, action]) => menuEntry(list, symbol, text, action)));
  });
  list.addEventListener("toggle", (event) => {
    if (event.newState === "open") place(list, opener);
  });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const items = [...list.querySelectorAll(":enabled, a")];
    items.at((items.indexOf(document.activeElement) + step) % items.length)?.focus();
  });
  return element("span", { class: "menu-anchor" }, opener, list);
}

function menuEntry(list, symbol, text, action) {
  const close = () => list.hidePopover();
  if (typeof action === "string") {
    return element("a", { class: "menu-entry", href: action, download: "", onclick: close }, icon(symbol), text);
  }
  const run = () => {
    close();
    action();
  };
  const properties = { type: "button", class: "menu-entry", onclick: run, disabled: action === null };
  return element("button", properties, icon(symbol), text);
}

function place(list, opener) {
  const box = opener.getBoundingClientRect();
  const left = Math.max(8, Math.min(box.right - list.offsetWidth, innerWidth - list.offsetWidth - 8));
  const below = box.bottom + 4;
  const top = below + list.offsetHeight > innerHeight ? Math.max(8, box.top - list.offsetHeight - 4) : below;
  list.style.setProperty("left", `${left}px`);
  list.style.setProperty("top", `${top}px`);
  list.querySelector(":enabled, a")?.focus();
}
