// One conversation on the page: header, turns, composer. Draws snapshots and the events between them.

import * as api from "../base/api.mjs";
import { element, icon, iconButton } from "../base/dom.mjs";
import { visible } from "../base/plain.mjs";
import { spoken } from "../base/snapshot.mjs";
import { editsKey, recall, remember } from "../base/storage.mjs";
import { Composer } from "./composer.mjs";
import { Header, problem } from "./header.mjs";
import { Follower } from "./scroller.mjs";
import { Turns } from "./turns.mjs";
import { welcome } from "./welcome.mjs";

const PRIVATE = new Set(["info", "warning", "error"]); // notices for the tab that gave the command
const SHORT = 120; // characters of a command's output that fit into a toast
const SPOKEN = 200; // characters of a longer one that a screen reader is told
const LONGEST_TITLE = 80; // characters
const FINE = matchMedia("(pointer: fine)"); // elsewhere the focus opens the screen's keyboard

/** Draws conversation `id` (null: a new one, created with its first line) into `container`. The container gets the
 *  events "event" {detail: event} after each event, and "inside" {detail: {turn}} when the user wants to look inside. */
export class ConversationPane {
  snapshot = null;
  consumer = null; // gets the notices for this tab while settings are open: (notice) => whether it was shown
  deleted = false;
  closed = false;
  #early = []; // notices about a reply that has not begun
  #sending = null; // the line that is on its way
  #quiet = false; // the command that is handled is that of a button
  #options = {}; // of the conversation that is created
  #toasts = []; // functions that remove those of this conversation

  constructor(container, app, id, { compact = false } = {}) {
    Object.assign(this, { container, app, id, compact });
    this.ready = new Promise((resolve) => (this.resolveReady = resolve));
    this.edits = recall(editsKey(id), {}); // turn -> {message, text}: messages that are being edited
    this.turns = new Turns(this);
    this.empty = element("div", { class: "empty", hidden: id !== null });
    this.outputs = element("div", { class: "outputs" });
    this.warnings = element("div", { class: "notices" });
    const content = element("div", { class: "content" }, this.empty, this.warnings, this.turns.element, this.outputs);
    const label = "Conversation";
    this.scroller = element("div", { class: "scroller", tabIndex: 0, role: "region", "aria-label": label }, content);
    this.follower = new Follower(this.scroller, content);
    this.problems = element("div", { class: "problems" });
    this.header = new Header(this, compact);
    this.composer = compact ? null : new Composer(this);
    container.classList.add("pane");
    container.classList.toggle("compact", compact);
    container.addEventListener("click", (event) => this.#guard(event), true);
    const parts = [this.header.element, this.scroller, this.follower.button, this.problems, this.composer?.element];
    container.replaceChildren(...parts.filter(Boolean));
    this.#showEmpty();
  }

  /** Whether a reply is running. */
  get running() {
    return Boolean(this.snapshot?.running);
  }

  /** The title that the user has chosen, or the first message; empty if there is none. */
  get title() {
    const turn = this.snapshot?.turns[0] ?? this.snapshot?.running ?? {};
    const first = turn.message?.trim() || spoken(turn); // without a text the names of its images
    return this.snapshot?.title || first.split("\n")[0].slice(0, LONGEST_TITLE);
  }

  /** What is in force for a sampling parameter; null if there is no such thing. */
  inForce(name) {
    const own = this.app.state.parameters.find((parameter) => parameter.name === name)?.default ?? null;
    return this.snapshot?.settings.sampling[name] ?? this.snapshot?.defaults[name] ?? own;
  }

  /** Whether the model sees images, as far as that is known. */
  get takesImages() {
    return this.snapshot?.takes_images ?? true;
  }

  /** Send a message or a command. Shows what went wrong; returns whether the server took it.
   *  quiet: a button's line: its "info" answers are not shown, and it is ignored while another line is on its way;
   *  keep: a node that stays at its place on the screen; follow: go to the end, as for a message; images: of a
   *  message, [{name, image}]. */
  async send(line, { quiet = false, keep = null, follow = !line.startsWith("/"), images = [] } = {}) {
    if (quiet && this.#sending) return false;
    await this.#sending;
    this.problems.replaceChildren();
    if (!line.startsWith("/")) this.outputs.replaceChildren();
    if (keep) this.follower.keep(keep);
    else if (follow) this.follower.toEnd();
    this.#quiet = quiet;
    this.#sending = this.post(line, images).then(
      () => true,
      (error) => {
        this.show("error", error.message);
        return false;
      },
    );
    const taken = await this.#sending;
    this.#sending = null;
    return taken;
  }

  /** Send a line; raises an Error if the server does not take it. */
  async post(line, images = []) {
    await this.create();
    await api.line(this.id, line, this.app.tab, images);
  }

  /** Create the conversation if it is new. */
  async create() {
    if (this.id !== null) return;
    this.creating ??= api.create(this.#options).finally(() => (this.creating = null));
    const { id } = await this.creating;
    if (this.id !== null) return;
    this.id = id;
    if (this.closed) return; // the user went on; the page stays where it is
    this.app.created(this);
    await this.ready; // so that no event about the line is missed
  }

  /** The server does not know this conversation, as it was started again. Returns whether nothing is lost by that:
   *  without turns it is created anew, with its settings. */
  forget() {
    if (!this.snapshot || this.snapshot.turns.length || this.running) return false;
    const { model, settings } = this.snapshot;
    const known = this.app.state.models.some(({ name }) => name === model);
    this.#options = { settings, model: known ? model : undefined };
    this.id = null;
    history.replaceState(null, "", "#/");
    return true;
  }

  /** Stop the reply that is running. */
  async stop() {
    if (!this.running) return;
    await api.stop(this.id).catch((error) => this.show("error", error.message));
  }

  /** Ask for the view into a reply, or into the window (null). */
  look(turn) {
    this.container.dispatchEvent(new CustomEvent("inside", { detail: { turn } }));
  }

  /** The models and commands are known now. */
  updateState() {
    this.header.update();
    this.composer?.completeCommands();
    this.#showEmpty();
  }

  /** Edit the last message in its place. */
  editLast() {
    this.turns.editLast();
  }

  /** Remember a message that is being edited (null: no longer). */
  keepEdit(turn, edit) {
    if (edit) this.edits[turn] = edit;
    else delete this.edits[turn];
    if (!this.deleted) remember(editsKey(this.id), Object.keys(this.edits).length ? this.edits : null);
  }

  /** Remember what is being written now. */
  keepDrafts() {
    this.composer?.keep();
    this.turns.keepEdits();
  }

  /** Stop drawing. */
  close() {
    this.turns.close();
    this.composer?.close();
    for (const remove of this.#toasts) remove();
    this.closed = true;
    this.container.replaceChildren();
  }

  /** Draw an event of the stream. */
  receive(event) {
    const draw = {
      snapshot: () => this.#apply(event.value),
      started: () => this.#start(event),
      piece: () => this.#piece(event),
      notice: () => this.#notice(event),
      loading: () => this.header.loading(event),
      draft: () => this.#draft(event),
      deleted: () => this.#deleted(),
    }[event.type];
    draw?.();
    this.container.dispatchEvent(new CustomEvent("event", { detail: event }));
  }

  /** Show a line above the composer, or a command's output. */
  show(kind, text) {
    const shown = visible(text);
    if (this.closed) return this.app.toast(kind, shown);
    if (kind !== "info") return this.problems.append(problem(kind, shown));
    if (text.length <= SHORT && !text.includes("\n")) return this.#toasts.push(this.app.toast("info", shown));
    const output = element("section", { class: "output", "aria-label": "Output" });
    output.append(element("pre", { text: shown, tabIndex: 0 }));
    output.append(iconButton("close", "Dismiss", () => output.remove()));
    this.outputs.append(output);
    this.app.announce(shown.slice(0, SPOKEN));
    return this.follower.toEnd();
  }

  /** Remove the lines above the composer with this text. */
  dismiss(text) {
    for (const line of [...this.problems.children]) if (line.firstElementChild.textContent === text) line.remove();
  }

  #apply(snapshot) {
    this.snapshot = snapshot;
    this.#early = [];
    if (this.deleted) this.problems.replaceChildren(); // it was restored
    this.deleted = this.#quiet = false;
    this.composer?.settle();
    this.turns.show();
    this.empty.hidden = snapshot.turns.length > 0 || this.running;
    this.#showEmpty();
    this.warnings.replaceChildren(...snapshot.warnings.map(warning));
    this.#update();
    this.resolveReady();
  }

  /** The header, the composer and what depends on where the window begins. */
  #update() {
    this.container.classList.toggle("running", this.running);
    this.header.update();
    this.composer?.update();
    this.turns.arrange();
    if (document.activeElement === document.body && FINE.matches) this.composer?.focus(); // its button is gone
  }

  /** While a reply runs, buttons that would need its end do nothing. They keep the focus, so they are not disabled. */
  #guard(event) {
    if (!event.target.closest?.("[aria-disabled=true]")) return;
    event.preventDefault();
    event.stopPropagation();
  }

  #start({ turn, message, images, beginning, reasoning }) {
    if (!this.snapshot) return;
    const before = this.snapshot.turns[turn];
    const said = { message: message ?? before?.message ?? "", images: images ?? before?.images ?? [] };
    const running = { turn, ...said, text: beginning, reasoning, tokens: [], notices: this.#early };
    this.#early = [];
    this.snapshot.running = running;
    this.turns.start(running);
    this.empty.hidden = true;
    this.#update();
  }

  #piece(event) {
    const running = this.snapshot?.running;
    if (!running) return;
    running.text += event.text;
    running.reasoning += event.reasoning;
    for (const token of event.tokens) running.tokens.push(token);
    this.turns.append(event);
    this.header.follow();
  }

  #notice({ kind, text, tab }) {
    if (!PRIVATE.has(kind)) {
      if (!this.turns.addNotice({ kind, text })) this.#early.push({ kind, text });
      return;
    }
    if ((tab && tab !== this.app.tab) || this.consumer?.({ kind, text })) return;
    if (kind === "info" && this.#quiet) return;
    this.show(kind, text);
    if (kind === "error") this.composer?.giveBack();
  }

  /** A message that got no reply. One of no tab is told to every tab that comes, each time; it is taken once. */
  #draft(event) {
    const { text, images, tab } = event;
    if (tab && tab !== this.app.tab) return;
    const draft = JSON.stringify([text, images]);
    if (tab || draft !== this.lastDraft) this.composer?.takeBack(event);
    this.lastDraft = draft;
  }

  #deleted() {
    this.deleted = true;
    const restore = () => this.app.restore(this.id);
    this.problems.replaceChildren(problem("warning", "This conversation was deleted.", ["Restore it", restore]));
  }

  #showEmpty() {
    if (this.empty.hidden || this.compact) {
      this.welcomed = null;
      return this.empty.replaceChildren();
    }
    const name = this.snapshot?.model ?? this.app.state.models[0]?.name ?? "";
    if (name === this.welcomed) return undefined; // what has the focus there stays
    this.welcomed = name;
    return this.empty.replaceChildren(...welcome(name, (text) => this.send(text, { quiet: true })));
  }
}

function warning(text) {
  return element("p", { class: "notice" }, icon("info"), visible(text));
}
