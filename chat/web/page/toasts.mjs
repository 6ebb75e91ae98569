// Short messages above the composer. They leave by themselves, errors only when dismissed.

import { button, element, iconButton } from "./base/dom.mjs";

const STAYS = 5000; // ms
const STAYS_WITH_ACTION = 10_000;
const READING = 80; // ms for a character of a longer text
const MOST = 3;

const region = document.getElementById("toasts");
const status = region.firstElementChild; // a live region; errors are announced by themselves

/** Show `text`; kind: info, warning or error; action: [label, function]. Returns a function that removes it. */
export function toast(kind, text, action = null) {
  dismiss(text); // once is enough
  const place = document.querySelector("dialog[open]") ?? document.body; // nothing else can be seen over a dialog
  if (region.parentNode !== place) place.append(region);
  const node = element("div", { class: `toast ${kind}`, role: kind === "error" ? "alert" : null });
  const close = () => node.remove();
  node.append(element("span", { text, dir: "auto" }));
  if (action) {
    const run = () => {
      close();
      action[1]();
    };
    node.append(button(action[0], run));
  }
  node.append(iconButton("close", "Dismiss", close));
  (kind === "error" ? region : status).append(node);
  for (let all = shown(); all.length > MOST; all = shown()) {
    (all.find((each) => each !== node && !each.matches(".error")) ?? all.find((each) => each !== node)).remove();
  }
  if (kind !== "error") leave(node, Math.max(action ? STAYS_WITH_ACTION : STAYS, READING * text.length));
  return close;
}

/** Remove the messages with this text. */
export function dismiss(text) {
  for (const node of shown()) if (node.firstElementChild.textContent === text) node.remove();
}

const shown = () => [...region.querySelectorAll(".toast")];

/** Remove a message after a while, but not while it is pointed at or has the focus. */
function leave(node, delay) {
  setTimeout(() => (node.matches(":hover, :focus-within") ? leave(node, delay) : node.remove()), delay);
}

/** Tell screen readers something that is not shown. */
export function announce(text) {
  const announcer = document.getElementById("announcer");
  announcer.textContent = "";
  setTimeout(() => (announcer.textContent = text)); // the same text as before is a change, too
}
