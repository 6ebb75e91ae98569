// Dialogs over the page: a title, a button that closes them, and a click beside them does it, too.

import { element, iconButton } from "./dom.mjs";

/** Show a dialog of the class `name` with these children. It is removed when it is closed. */
export function openDialog(name, title, ...children) {
  const dialog = element("dialog", { class: name, "aria-labelledby": `${name}-title` });
  const settle = () => dialog.contains(document.activeElement) && document.activeElement.blur(); // tells its change
  const close = () => {
    settle();
    dialog.close();
  };
  const head = element("header", {}, element("h2", { id: `${name}-title`, text: title }));
  head.append(iconButton("close", "Close", close));
  dialog.append(head, ...children);
  dialog.addEventListener("cancel", settle);
  dialog.addEventListener("click", (event) => event.target === dialog && close());
  dialog.addEventListener("close", () => {
    const toasts = dialog.querySelector("#toasts"); // they were put where they can be seen
    if (toasts) document.body.append(toasts);
    dialog.remove();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
