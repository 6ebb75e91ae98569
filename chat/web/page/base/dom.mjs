// Small helpers that build DOM. Text is always set as text, never parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";
const ICONS = "/static/icons.svg";
const COPIED_FOR = 1500; // ms that a copy button says so

/** Make an element: `class`, `text`, `on…` listeners; properties that exist on it, else attributes; then children. */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === "class") node.className = value;
    else if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && typeof value !== "string") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** An icon of icons.svg; hidden from screen readers, so its button needs a label. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `${ICONS}#${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows only an icon; the label is its tooltip, too. */
export function iconButton(name, label, onclick, properties = {}) {
  const { class: extra = "", ...rest } = properties;
  const attributes = { type: "button", title: label, "aria-label": label, onclick, ...rest };
  return element("button", { ...attributes, class: `icon-button ${extra}`.trim() }, icon(name));
}

/** A button with a text. */
export function button(label, onclick, properties = {}) {
  const { class: extra = "", ...rest } = properties;
  return element("button", { type: "button", text: label, onclick, ...rest, class: `button ${extra}`.trim() });
}

/** Give a button another icon and label. */
export function relabel(node, name, label) {
  node.title = label;
  node.setAttribute("aria-label", label);
  node.querySelector("use").setAttribute("href", `${ICONS}#${name}`);
}

const copied = new WeakMap(); // buttons that say so -> {label, timer}

/** Put a text into the clipboard; the button says whether it worked. */
export async function copyText(text, node) {
  const label = copied.get(node)?.label ?? node.title;
  try {
    await navigator.clipboard.writeText(text);
    relabel(node, "check", "Copied");
  } catch {
    relabel(node, "warn", "The browser did not allow copying");
  }
  clearTimeout(copied.get(node)?.timer);
  const back = () => {
    copied.delete(node);
    relabel(node, "copy", label);
  };
  copied.set(node, { label, timer: setTimeout(back, COPIED_FOR) });
}

/** Text that only screen readers get. */
export function hidden(tag, text) {
  return element(tag, { class: "hidden", text });
}
