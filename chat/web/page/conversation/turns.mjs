// The turns of a conversation: built in the frames that come, the newest first, and kept while they stay the same.

import { element } from "../base/dom.mjs";
import { cancel, early, later } from "../base/frames.mjs";
import { firstSeen } from "../base/snapshot.mjs";
import { TurnView } from "./turn.mjs";

const SPOKEN = 200; // characters of a finished reply that a screen reader is told

/** Draws the turns of a pane; the element is `turns.element`. */
export class Turns {
  #views = []; // TurnView by index; the beginning may be missing
  #loaded = []; // the turns of the snapshot that have ended
  #streaming = null; // the TurnView whose reply is running
  #build = (deadline) => this.#buildMissing(deadline);

  constructor(pane) {
    this.pane = pane;
    this.element = element("div", { class: "turns" });
    this.divider = element("p", { class: "divider", role: "separator" });
  }

  /** Show the pane's snapshot. */
  show() {
    const { turns, running } = this.pane.snapshot;
    this.#loaded = running ? turns.slice(0, running.turn) : turns;
    if (this.#streaming && !running) this.#endStream();
    const views = this.#views;
    this.#views = this.#loaded.map((turn, index) => views[index] ?? null);
    // a view goes on with another version of its turn, so that the focus and what is being edited stay
    for (const [index, view] of this.#views.entries()) view?.show(this.#loaded[index]);
    for (const view of views.slice(this.#views.length)) if (view?.index !== running?.turn) view?.close();
    if (running) this.#showRunning(running, views[running.turn]);
    later(this.#build);
  }

  /** A reply begins: show it in the place of its turn, and nothing after it. */
  start(running) {
    this.#loaded = this.pane.snapshot.turns.slice(0, running.turn);
    const [old, ...after] = this.#views.splice(running.turn);
    for (const view of after) view?.close();
    this.#showRunning(running, old);
    later(this.#build);
  }

  /** Add a piece to the reply that is running. */
  append(event) {
    this.#streaming?.reply.append(event);
  }

  /** Add a notice about the reply that is running. Returns whether there is one. */
  addNotice(notice) {
    this.#streaming?.addNotice(notice);
    return this.#streaming !== null;
  }

  /** Edit the last message in its place. */
  editLast() {
    this.#all().at(-1)?.edit();
  }

  /** Remember the messages that are being edited. */
  keepEdits() {
    for (const view of this.#all()) view.keepEdit();
  }

  /** Dim the turns that have left the window, mark where it begins, and say what can be done with each. */
  arrange() {
    const views = this.#all();
    const last = views.at(-1);
    const { snapshot } = this.pane;
    const alone = snapshot && !snapshot.settings.history;
    const first = snapshot ? firstSeen(snapshot) : 0;
    for (const view of views) view.place(view.index < first, view === last);
    const begin = views.find((view) => view.index >= first);
    const text = alone ? "History is off: the model sees only what is below" : "The turns above have left the window";
    this.divider.textContent = text;
    this.divider.setAttribute("aria-label", text); // what is inside a separator is not read
    if (first > 0 && begin) {
      if (begin.element.previousSibling !== this.divider) begin.element.before(this.divider);
    } else this.divider.remove();
  }

  /** Stop drawing. */
  close() {
    cancel(this.#build);
    for (const view of this.#all()) view.close();
  }

  /** The reply has ended: its view becomes the view of the turn, if it has the same message. */
  #endStream() {
    const view = this.#streaming;
    this.#streaming = null;
    const turn = this.#loaded[view.index];
    if (!turn || !view.hasMessage(turn)) return view.close();
    this.#views[view.index]?.close();
    this.#views[view.index] = view;
    view.show(turn);
    if (turn.reply) this.pane.app.announce(`Reply finished: ${turn.reply.slice(0, SPOKEN)}`);
  }

  #showRunning(running, old = null) {
    if (this.#streaming?.index !== running.turn) {
      this.#streaming?.close();
      this.#streaming = old ?? new TurnView(this.pane, running.turn);
    } else if (old && old !== this.#streaming) old.close();
    this.#streaming.begin(running);
    if (this.element.lastElementChild !== this.#streaming.element) this.element.append(this.#streaming.element);
  }

  /** Build missing turns. Returns whether there are more. */
  #buildMissing(deadline) {
    let index = this.#views.lastIndexOf(null);
    while (index >= 0) {
      const view = new TurnView(this.pane, index);
      view.show(this.#loaded[index]);
      const after = this.#views[index + 1] ?? this.#streaming;
      this.element.insertBefore(view.element, after?.element ?? null);
      view.reply.blocks.draw(deadline);
      this.#views[index] = view;
      index = this.#views.lastIndexOf(null, index);
      if (!early(deadline)) break;
    }
    this.arrange();
    return index >= 0;
  }

  #all() {
    return [...this.#views, this.#streaming].filter(Boolean);
  }
}
