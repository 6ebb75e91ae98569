// Small parts that the views of "Inside" share: figures with an explanation, messages, numbers as text.

import { button, element } from "./dom.mjs";

/** A figure that opens to a sentence about it: {root, set(text)}. */
export function figure(name, about) {
  const value = element("span", { class: "figure-value" }, "–");
  const root = element(
    "details",
    { class: "figure" },
    element("summary", { title: about }, element("span", { class: "figure-name" }, name), value),
    element("p", {}, about),
  );
  return {
    root,
    set: (text) => {
      value.textContent = text;
    },
  };
}

/** A line that stands where there is nothing to show, with a button if there is a way out. */
export function placeholder(text, action = "", onclick = null) {
  return element("div", { class: "placeholder" }, element("p", {}, text), action ? button(action, onclick) : null);
}

/** A bar of parts: `parts` are [class, share of the whole]. */
export function stack(parts) {
  return element(
    "div",
    { class: "stack", "aria-hidden": "true" },
    ...parts.map(([kind, share]) => {
      const part = element("span", { class: `part ${kind}` });
      part.style.setProperty("--share", share);
      return part;
    }),
  );
}

/** A group of radio buttons; the first choice is chosen. */
export function radios(name, choices, onchange) {
  return element(
    "fieldset",
    { class: "radios" },
    element("legend", {}, name),
    ...choices.map((value, index) =>
      element(
        "label",
        {},
        element("input", { type: "radio", name, value, checked: index === 0, onchange: () => onchange(value) }),
        value,
      ),
    ),
  );
}

const separated = new Intl.NumberFormat("en");

/** A count with separators: "20,000". */
export const count = (number) => separated.format(number);

/** Tokens per second as people read them: "8.4", "96.3", "141". */
export const rate = (number) => (number < 100 ? number.toFixed(1) : count(Math.round(number)));

/** Bytes as people read them: "13.5 GB", "270 MB". */
export function bytes(number) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let index = 0;
  let value = number;
  while (value >= 1000 && index < units.length - 1) [value, index] = [value / 1000, index + 1];
  return `${value < 100 && index ? value.toFixed(1) : Math.round(value)} ${units[index]}`;
}

/** Seconds as people read them: "0.21 s", "18 ms". */
export function seconds(number) {
  if (number < 0.1) return `${(number * 1000).toFixed(number < 0.01 ? 1 : 0)} ms`;
  return `${number.toFixed(number < 10 ? 2 : 1)} s`;
}

/** Call `work` at most once per `milliseconds`, the last time included. */
export function throttled(work, milliseconds) {
  let timer = null;
  let last = -Infinity;
  const run = () => {
    timer = null;
    last = performance.now();
    work();
  };
  return () => {
    timer ??= setTimeout(run, Math.max(0, milliseconds - (performance.now() - last)));
  };
}
