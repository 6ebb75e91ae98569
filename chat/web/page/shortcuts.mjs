// The keys of the page, and the list of them.

import { openDialog } from "./base/dialog.mjs";
import { element } from "./base/dom.mjs";
import { isWriting } from "./base/fields.mjs";

const MAC = /Mac|iPhone|iPad/.test(navigator.platform);
const CONTROL = MAC ? "⌘" : "Ctrl";
const LIST = [
  ["Enter", "send the message"],
  ["Shift+Enter", "new line"],
  ["Esc", "stop the reply"],
  ["↑", "in an empty composer: edit the last message"],
  ["/", "commands; anywhere else: go to the composer"],
  [`${CONTROL}+K`, "search the conversations"],
  [`${CONTROL}+Shift+O`, "new conversation"],
  ["Alt+↑, Alt+↓", "conversation before, after"],
  [`${CONTROL}+,`, "settings"],
  [`${CONTROL}+B`, "show or hide the sidebar"],
  ["?", "this list"],
];

/** Listen to the keys. */
export function listen(app) {
  const withControl = {
    k: () => app.search(),
    b: () => app.drawer.toggle(),
    ",": () => app.openSettings(app.pane),
  };
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || isWriting(event) || document.querySelector("dialog[open]")) return;
    const field = event.target.closest?.("input, textarea, select");
    const control = MAC ? event.metaKey : event.ctrlKey;
    const key = event.key.toLowerCase();
    const step = { arrowup: -1, arrowdown: 1 }[key];
    let action = null;
    if (control && event.shiftKey && key === "o") action = () => app.newConversation();
    else if (control && !event.shiftKey && !event.altKey) action = withControl[key];
    // the same keys open a list of choices, and on a Mac they move the cursor
    else if (event.altKey && step) action = !(MAC ? field : field?.matches("select")) && (() => app.step(step));
    else if (key === "escape" && !document.querySelector(":popover-open"))
      action = app.view?.running && (() => app.view.stop());
    else if (!field && !event.altKey && key === "?") action = openShortcuts;
    else if (!field && !event.altKey && key === "/") action = () => app.focusComposer();
    if (!action) return;
    event.preventDefault();
    action();
  });
}

/** Show the list of keys. */
export function openShortcuts() {
  const rows = LIST.flatMap(([key, text]) => [
    element("dt", {}, element("kbd", { text: key })),
    element("dd", { text }),
  ]);
  openDialog("shortcuts", "Keyboard", element("dl", {}, ...rows));
}
