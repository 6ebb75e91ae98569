// What an empty conversation shows: the model, and messages to begin with.

import { button, element } from "../base/dom.mjs";
import { openShortcuts } from "../shortcuts.mjs";

const EXAMPLES = [
  "Explain in three sentences how a language model writes text.",
  "Write a Python function that reverses a string, and explain it.",
  "Give me five ideas for a rainy afternoon.",
];
const KEYBOARD = matchMedia("(pointer: fine)");

/** The nodes; `send(text)` gets the example that is chosen. */
export function welcome(model, send) {
  const examples = EXAMPLES.map((text) =>
    element("button", { type: "button", class: "example", text, onclick: () => send(text) }),
  );
  const hint = element("p", { text: "Type / for commands" });
  if (KEYBOARD.matches) hint.append(" · ", button("Keyboard shortcuts", openShortcuts, { class: "quiet" }));
  return [
    element("h2", { text: model ? `Chat with ${model}` : "A new conversation" }),
    hint,
    element("div", { class: "examples" }, ...examples),
  ];
}
