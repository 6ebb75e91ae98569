// Text that is being written: input methods, undo, and titles that are changed in their place.

import { element } from "./dom.mjs";

const UNDOABLE = 2000; // characters; the browser's own insertion is slow for long texts

/** Whether an input method is at work: its Enter and its Escape are not the page's. */
export const isWriting = (event) => event.isComposing || event.keyCode === 229;

/** Put `text` in the place of a part of a textarea, so that the browser can undo it if it is short. */
export function insertText(area, text, start = area.selectionStart, end = area.selectionEnd) {
  area.focus({ preventScroll: true });
  area.setSelectionRange(start, end);
  if (text.length <= UNDOABLE && document.execCommand("insertText", false, text)) return; // tells "input" itself
  area.setRangeText(text, start, end, "end");
  area.dispatchEvent(new Event("input"));
}

/** Show a field for another title in the place of `node`. `ended(title, byKey)` is called when the node is back;
 *  title: null if it stays. */
export function editTitle(node, label, title, ended) {
  const input = element("input", { class: "field title-field", type: "text", dir: "auto", "aria-label": label });
  input.value = title;
  let open = true;
  const end = (text, byKey) => {
    if (!open) return;
    open = false;
    input.replaceWith(node);
    const changed = text.trim();
    ended(changed && changed !== title ? changed : null, byKey);
  };
  input.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (isWriting(event) || (event.key !== "Enter" && event.key !== "Escape")) return;
    event.preventDefault(); // the key must not be taken by what gets the focus
    end(event.key === "Enter" ? input.value : "", true);
  });
  input.addEventListener("blur", () => end(input.value, false));
  node.replaceWith(input);
  input.select();
  input.focus();
}
