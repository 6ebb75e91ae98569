// The page: which view is open, the stream of events, and what the views share. Begins everything.

import * as api from "./base/api.mjs";
import { element } from "./base/dom.mjs";
import { EventStream } from "./base/events.mjs";
import { hasFiles } from "./base/files.mjs";
import { afterPaint } from "./base/frames.mjs";
import { forgetDrafts, tabName } from "./base/storage.mjs";
import { ConversationPane } from "./conversation/conversation.mjs";
import { Drawer } from "./drawer.mjs";
import { listen } from "./shortcuts.mjs";
import { Sidebar } from "./sidebar.mjs";
import { announce, dismiss, toast } from "./toasts.mjs";

const main = document.getElementById("main");
const inside = document.getElementById("inside");
const banner = document.getElementById("banner");

class App {
  state = { models: [], commands: [], parameters: [], strategies: [], api: null, version: "" }; // of /web/state
  api = api;
  tab = tabName();
  toast = toast;
  announce = announce;
  pane = null; // the conversation that is open; null while two are compared
  view = null; // what is open: the pane, or a comparison; it has running, stop() and close()
  #onEvent = null;
  #routes = 0; // how often another view was opened
  #lost = false; // the server is not there
  #closeInside = () => {}; // there is nothing to close before it is loaded

  begin() {
    this.sidebar = new Sidebar(this);
    this.drawer = new Drawer(() => this.#guard());
    new MutationObserver(() => this.#guard()).observe(inside, { attributeFilter: ["data-modal"] });
    this.stream = new EventStream(
      this.tab,
      (event) => this.#receive(event),
      (status, text) => this.#status(status, text),
    );
    window.addEventListener("hashchange", () => this.#route());
    for (const kind of ["dragover", "drop"]) {
      window.addEventListener(kind, (event) => hasFiles(event) && event.preventDefault()); // beside its targets
    }
    document.querySelector(".skip").addEventListener("click", (event) => {
      event.preventDefault(); // the address names the view
      main.focus();
    });
    listen(this);
    this.#route();
    this.#loadState();
  }

  /** Go to a conversation. */
  openConversation(id) {
    location.hash = `#/c/${encodeURIComponent(id)}`;
  }

  /** Go to an empty conversation. */
  newConversation() {
    if (location.hash !== "#/" && location.hash) location.hash = "#/";
    else this.#route();
  }

  /** Follow these conversations in the view that is open; `onEvent(event)` gets their events. */
  watch(ids, onEvent) {
    this.#onEvent = onEvent;
    this.stream.follow(ids);
    return () => {
      if (this.#onEvent === onEvent) this.#onEvent = null;
    };
  }

  /** The new conversation of the open pane got its id: the pane stays open. */
  created(pane) {
    history.replaceState(null, "", `#/c/${encodeURIComponent(pane.id)}`);
    this.sidebar.select(pane.id);
    this.watch([pane.id], (event) => pane.receive(event));
  }

  /** Delete a conversation; it can be restored. */
  async deleteConversation(id, title) {
    const pane = this.pane?.id === id ? this.pane : null;
    pane?.keepDrafts();
    let forgotten;
    try {
      ({ forgotten } = await api.remove(id));
    } catch (error) {
      return toast("error", error.message);
    }
    const keepDrafts = forgetDrafts(id);
    if (pane && pane === this.pane) {
      pane.deleted = true; // it remembers nothing any more
      history.pushState(null, "", "#/");
      this.#route();
    }
    const restore = async () => {
      keepDrafts();
      await this.restore(id, pane !== null);
    };
    const turns = forgotten === 1 ? "turn" : `${forgotten} turns`;
    const memory = forgotten ? ` The memory has forgotten its ${turns}.` : "";
    return toast("info", `Deleted “${title}”. It is kept in “Deleted conversations”.${memory}`, ["Undo", restore]);
  }

  /** Take the deletion of a conversation back. Resolves to whether that went well. */
  async restore(id, open = true) {
    try {
      await api.restore(id);
    } catch (error) {
      toast("error", error.message);
      return false;
    }
    if (open && this.pane?.id !== id) this.openConversation(id); // an open one is told by its stream
    return true;
  }

  /** Open the settings of a pane. */
  async openSettings(pane) {
    if (!pane) return;
    try {
      const { openSettings } = await import("./settings.mjs");
      await openSettings(pane);
    } catch (error) {
      toast("error", error.message);
    }
  }

  /** Show the deleted conversations. */
  async openDeleted() {
    try {
      const { openDeleted } = await import("./deleted.mjs");
      await openDeleted((id) => this.restore(id));
    } catch (error) {
      toast("error", error.message);
    }
  }

  /** Move the focus to the search field. */
  search() {
    this.drawer.toggle(true);
    this.sidebar.search.select();
    this.sidebar.search.focus();
  }

  /** Move the focus to where a message is written. */
  focusComposer() {
    (this.pane?.composer?.area ?? main.querySelector("textarea"))?.focus();
  }

  /** Go to the conversation before (-1) or after (1). */
  step(direction) {
    const id = this.sidebar.neighbour(direction);
    if (id) this.openConversation(id);
  }

  async #loadState() {
    try {
      this.state = await api.state();
      this.pane?.updateState();
    } catch (error) {
      toast("error", error.message);
    }
  }

  /** What is covered gets no focus. */
  #guard() {
    main.inert = Boolean(this.drawer?.covers) || inside.hasAttribute("data-modal");
  }

  async #route() {
    const route = (this.#routes += 1);
    const [kind, ...ids] = addressed(location.hash);
    this.view?.close();
    this.view = this.pane = null;
    this.#closeInside();
    main.className = "";
    this.sidebar.select(kind === "c" ? ids[0] : null);
    this.drawer.chosen();
    if (kind === "compare") await this.#compare(ids, route);
    else this.#conversation(kind === "c" ? ids[0] : null);
    this.#showTitle();
  }

  #conversation(id) {
    const container = element("section", {});
    main.replaceChildren(container);
    const pane = new ConversationPane(container, this, id);
    this.view = this.pane = pane;
    container.addEventListener("inside", async ({ detail }) => {
      const { openInside, closeInside } = await import("./inside/inside.mjs");
      this.#closeInside = closeInside;
      openInside(this, pane, detail.turn);
    });
    this.watch(id === null ? [] : [id], (event) => pane.receive(event));
    // on a phone the focus would open the keyboard
    if (matchMedia("(pointer: fine)").matches) afterPaint(() => pane.composer.focus());
  }

  async #compare([first, second], route) {
    main.replaceChildren();
    const { openCompare } = await import("./compare/compare.mjs");
    if (route !== this.#routes) return; // the user went on meanwhile
    const other = second === first ? undefined : second; // with itself: with a copy
    const view = (await openCompare(this, first ?? null, other, main)) ?? null;
    if (route === this.#routes) this.view = view;
    else view?.close();
  }

  #receive(event) {
    if (event.type === "conversations") {
      this.sidebar.show(event.conversations);
      return;
    }
    this.#onEvent?.(event);
    if (event.type !== "piece") this.#showTitle();
  }

  #showTitle() {
    const title = this.pane?.title || (this.pane ? "" : "Side by side");
    const dot = this.view?.running && !this.#lost ? "● " : "";
    document.title = `${dot}${title ? `${title} – ` : ""}bareloop`;
  }

  #status(status, text) {
    if (status === "missing") {
      if (!this.pane?.forget()) toast("error", text);
      return;
    }
    const connected = status === "connected";
    if (connected && this.#lost) {
      dismiss(api.NO_ANSWER);
      this.pane?.dismiss(api.NO_ANSWER);
      this.#loadState(); // another server may have other models
    }
    this.#lost = !connected;
    document.body.classList.toggle("lost", this.#lost);
    banner.hidden = connected;
    banner.textContent = text;
    this.#showTitle();
  }
}

/** The parts of an address; a broken one is that of an empty conversation. */
function addressed(hash) {
  try {
    return hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decodeURIComponent);
  } catch {
    toast("error", "this address is broken; choose a conversation from the list");
    return [];
  }
}

/** What all views share. */
export const app = new App();
afterPaint(() => app.begin()); // the frame of the page is seen first
