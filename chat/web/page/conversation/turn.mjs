// One turn: the user's message, the reply, their buttons, and the notices before it.

import { button, copyText, element, hidden, icon, iconButton } from "../base/dom.mjs";
import { isWriting } from "../base/fields.mjs";
import { count } from "../base/figures.mjs";
import { later } from "../base/frames.mjs";
import { PlainText, visible } from "../base/plain.mjs";
import { pictures } from "./images.mjs";
import { ReplyView } from "./reply.mjs";

const BETWEEN = new Set(["dropped", "summary", "recalled"]); // notices about the prompt: shown before the turn
const LONG = 3000; // characters of a message that are shown at first
const STEP = 16_000; // characters of the rest that are added in one frame
const EDIT_KEPT_AFTER = 300; // ms without typing
const KNOWN_BY = 200; // characters of a message by which an edit is known to be one of it

/** Draws a turn of a pane; the element is `view.element`. */
export class TurnView {
  #json = "";
  #message = null;
  #images = "[]"; // as JSON
  #editor = null; // {node, area}
  #timer = 0;
  #isCut = false;
  #saving = false;

  constructor(pane, index) {
    this.pane = pane;
    this.index = index;
    this.notices = element("div", { class: "notices" });
    this.shots = element("div", { class: "shots", hidden: true });
    this.bubble = element("div", { class: "bubble plain", dir: "auto" });
    this.editButton = iconButton("edit", "Edit message", () => this.edit(), { class: "idle" });
    const mine = element("div", { class: "actions" }, this.editButton);
    this.mine = element("section", { class: "mine" }, hidden("h2", "You"), this.shots, this.bubble, mine);
    this.versions = element("span", { class: "versions" });
    this.reply = new ReplyView();
    this.reply.element.append(this.#replyActions());
    const parts = [this.notices, this.mine, this.reply.element];
    this.element = element("article", { class: "turn", "aria-label": `Turn ${index + 1}` }, ...parts);
  }

  /** Whether a turn of a snapshot has the message that is shown. */
  hasMessage({ message, images }) {
    return message === this.#message && JSON.stringify(images) === this.#images;
  }

  /** Show a turn of a snapshot. */
  show(turn) {
    const json = JSON.stringify(turn);
    if (json === this.#json) return;
    this.#json = json;
    this.element.removeAttribute("aria-busy");
    this.#setMessage(turn);
    this.#setVersions(...turn.version);
    this.#setNotices(turn.notices);
    this.reply.show(turn, this.#limit(turn));
    const isReply = turn.reply !== null;
    this.reply.element.hidden = !isReply && turn.version[1] < 2;
    for (const node of this.ofReply) node.hidden = !isReply;
    this.#isCut = isReply && Boolean(turn.finish_reason) && turn.finish_reason !== "stop";
  }

  /** Show a turn whose reply is running. */
  begin(running) {
    this.#json = "";
    this.element.setAttribute("aria-busy", "true");
    const before = this.pane.snapshot.turns[this.index];
    this.#setMessage({
      message: running.message ?? before?.message ?? "",
      images: running.images ?? before?.images ?? [],
    });
    this.versions.replaceChildren();
    this.#setNotices(running.notices ?? []);
    this.reply.element.hidden = false;
    this.reply.begin(running);
  }

  /** Add a notice about the reply that is running. */
  addNotice(notice) {
    if (BETWEEN.has(notice.kind)) this.notices.append(noticeLine(notice));
  }

  /** Dim a turn that is no longer in the prompt; `last`: only there a reply can be continued. */
  place(evicted, last) {
    const { running, snapshot } = this.pane;
    this.element.classList.toggle("evicted", evicted);
    this.element.classList.toggle("last", last);
    const full = snapshot.limit > 0 && snapshot.used >= snapshot.limit;
    this.continueButton.hidden = !(this.#isCut && last && !full);
    for (const node of this.element.querySelectorAll(".idle")) node.ariaDisabled = running ? "true" : null;
  }

  /** Edit the message in its place; `text`: what was written before. */
  edit(text = this.#message) {
    if (this.#editor) return;
    const area = element("textarea", { class: "field", "aria-label": "Edit your message", dir: "auto" });
    area.value = text;
    area.rows = Math.min(12, text.split("\n").length + 1);
    const save = button("Save and send", () => this.#save(area), { class: "primary idle" });
    const stop = button("Cancel", () => this.#endEdit());
    const node = element("div", { class: "editor" }, area, element("div", { class: "row" }, stop, save));
    this.#editor = { node, area };
    area.addEventListener("input", () => {
      save.disabled = !area.value.trim();
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.keepEdit(), EDIT_KEPT_AFTER);
    });
    area.addEventListener("keydown", (event) => {
      if (isWriting(event)) return;
      if (event.key === "Escape") this.#endEdit();
      else if (event.key === "Enter" && !event.shiftKey) this.#save(area);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.mine.classList.add("editing");
    this.bubble.after(node);
    if (text !== this.#message) return; // nobody has asked for the focus
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  /** Free what draws in later frames, and remove the element. What is being edited is kept. */
  close() {
    this.keepEdit();
    this.reply.close();
    this.element.remove();
  }

  async #save(area) {
    const text = area.value.trim();
    if (!text || this.#saving) return;
    this.#saving = true;
    const line = `/branch ${this.index + 1} ${text}`;
    if (await this.pane.send(line, { quiet: true, follow: true })) this.#endEdit();
    this.#saving = false;
  }

  /** Remember what is being edited, if it is another text. */
  keepEdit() {
    clearTimeout(this.#timer);
    if (!this.#editor) return;
    const text = this.#editor.area.value;
    const isOther = text !== this.#message;
    this.pane.keepEdit(this.index, isOther ? { message: this.#message.slice(0, KNOWN_BY), text } : null);
  }

  #endEdit() {
    if (!this.#editor) return;
    this.pane.keepEdit(this.index, null);
    this.#removeEditor();
  }

  #removeEditor() {
    clearTimeout(this.#timer);
    const { node } = this.#editor;
    const focused = node.contains(document.activeElement);
    node.remove();
    this.#editor = null;
    this.mine.classList.remove("editing");
    if (focused) this.editButton.focus();
  }

  #replyActions() {
    const { pane, index } = this;
    const quiet = true;
    const copy = iconButton("copy", "Copy reply", () => copyText(this.reply.blocks.text, copy));
    const again = () => pane.send(`/retry ${index + 1}`, { quiet, follow: true });
    const retry = iconButton("retry", "Try again", again, { class: "idle" });
    const inside = iconButton("inside", "Look inside", () => pane.look(index));
    const proceed = () => pane.send("/continue", { quiet, follow: true });
    this.continueButton = element("button", { type: "button", class: "button idle", onclick: proceed, hidden: true });
    this.continueButton.append(icon("forward"), "Continue");
    this.ofReply = [copy, retry, inside, this.reply.statistics];
    const buttons = element("div", { class: "actions" }, this.versions, copy, retry, inside);
    return element("footer", { class: "foot" }, this.continueButton, buttons, this.reply.statistics);
  }

  /** Which limit has cut a reply off. */
  #limit({ finish_reason: why, statistics }) {
    if (why !== "length") return "";
    const { limit, used } = this.pane.snapshot;
    const size = statistics ? statistics.prompt_tokens + statistics.completion_tokens : used;
    if (limit && size >= limit) return `the window of ${count(limit)} tokens is full`;
    const most = this.pane.inForce("max_new_tokens");
    return `the reply reached its limit${most ? ` of ${count(most)} tokens (max_new_tokens)` : ""}`;
  }

  #setMessage(turn) {
    if (this.hasMessage(turn)) return;
    const { message: text, images } = turn;
    this.#images = JSON.stringify(images);
    this.shots.replaceChildren(...pictures(this.pane.id, images));
    this.shots.hidden = !images.length;
    this.bubble.hidden = !text && images.length > 0;
    if (text === this.#message) return;
    if (this.#editor) {
      this.keepEdit(); // it comes back with its message
      this.#removeEditor();
    }
    this.#message = text;
    this.bubble.replaceChildren();
    const shown = new PlainText(this.bubble);
    const most = text.length > LONG + LONG / 10 ? LONG : text.length;
    shown.append(text.slice(0, most));
    if (most < text.length) this.#offerRest(text, most);
    const edit = this.pane.edits[this.index];
    if (edit?.message === text.slice(0, KNOWN_BY)) this.edit(edit.text);
  }

  #offerRest(text, most) {
    const more = button(`Show all ${count(text.length)} characters`, () => {
      more.remove();
      const rest = new PlainText(this.bubble);
      let at = most;
      later(() => {
        if (this.#message !== text) return false;
        rest.append(text.slice(at, at + STEP));
        at += STEP;
        return at < text.length;
      });
    });
    more.classList.add("more");
    this.bubble.append(more);
  }

  #setVersions(which, number) {
    if (number < 2) return this.versions.replaceChildren();
    const go = (step) => () => {
      const line = `/version ${this.index + 1} ${which + 1 + step}`;
      this.pane.send(line, { quiet: true, keep: this.element });
    };
    const arrow = (name, label, step) =>
      iconButton(name, label, go(step), { class: "idle", disabled: which + step < 0 || which + step >= number });
    const text = element("span", { text: `${which + 1}/${number}`, "aria-hidden": "true" });
    const focused = this.versions.contains(document.activeElement) ? document.activeElement.title : "";
    const spoken = hidden("span", `Version ${which + 1} of ${number}`);
    const [before, after] = [arrow("left", "Version before", -1), arrow("right", "Next version", 1)];
    this.versions.replaceChildren(before, text, spoken, after);
    if (!focused) return undefined;
    const [same, other] = focused === before.title ? [before, after] : [after, before];
    return (same.disabled ? other : same).focus({ preventScroll: true });
  }

  #setNotices(notices) {
    this.notices.replaceChildren(...notices.filter(({ kind }) => BETWEEN.has(kind)).map(noticeLine));
  }
}

function noticeLine({ kind, text }) {
  if (kind !== "summary") return element("p", { class: "notice", dir: "auto" }, icon("info"), visible(text));
  const [head, ...rest] = visible(text).split(": ");
  const summary = element("summary", {}, icon("info"), head);
  return element("details", { class: "notice" }, summary, element("p", { text: rest.join(": "), dir: "auto" }));
}
