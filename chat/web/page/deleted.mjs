// The deleted conversations, each with a button that takes it back.

import * as api from "./base/api.mjs";
import { openDialog } from "./base/dialog.mjs";
import { button, element } from "./base/dom.mjs";

const date = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });

/** Show the deleted conversations. `restore(id)` takes one back and opens it; resolves to whether it did. */
export async function openDeleted(restore) {
  const { conversations } = await api.deleted();
  const rows = conversations.map(({ id, title, updated }) => {
    const name = title || "(no title)";
    const take = button("Restore", async () => (await restore(id)) && dialog.close(), {
      "aria-label": `Restore ${name}`,
    });
    const about = element("span", { class: "help", text: date.format(new Date(updated)) });
    return element("li", {}, element("span", { class: "name", text: name, dir: "auto" }), about, take);
  });
  const list = rows.length
    ? element("ul", {}, ...rows)
    : element("p", { class: "none", text: "No deleted conversations" });
  const dialog = openDialog("deleted", "Deleted conversations", list);
}
