// Where a message is written: sends with Enter, completes commands, takes images and text files, and keeps drafts.

import { imageAddress } from "../base/api.mjs";
import { element, hidden, iconButton, relabel } from "../base/dom.mjs";
import { insertText, isWriting } from "../base/fields.mjs";
import { fenced, takeDrops } from "../base/files.mjs";
import { draftKey, recall, remember } from "../base/storage.mjs";
import { Completion } from "./completion.mjs";
import { Tray, isImage } from "./images.mjs";

const SAVED_AFTER = 300; // ms without typing
const TOUCH = matchMedia("(pointer: coarse)"); // there, Enter on the screen's keyboard begins a new line
const GROWS = CSS.supports("field-sizing", "content"); // else the height is set here
const BUSY = "A reply is running: stop it (Esc), or send your message when it has ended";
const NO_IMAGES = "this model takes no images; choose a vision-language model such as SmolVLM";

/** The composer of a pane; the element is `composer.element`. */
export class Composer {
  #timer = 0;
  #sending = ""; // what is on its way to the server
  #isOnItsWay = false;
  #reading = Promise.resolve(); // files, before a message is sent
  #command = ""; // the command that the server is handling
  #key = ""; // under which the draft is remembered
  #kept = null; // the draft that is remembered there
  #closed = false;
  #save = () => this.keep();

  constructor(pane) {
    this.pane = pane;
    this.area = element("textarea", { rows: 1, dir: "auto", "aria-label": "Message", placeholder: "Write a message" });
    this.area.enterKeyHint = TOUCH.matches ? "enter" : "send";
    this.completion = new Completion(this.area, () => pane.app.state.commands);
    this.picker = element("input", { type: "file", hidden: true, multiple: true, onchange: () => this.#picked() });
    const attach = iconButton("clip", "Attach images or text files", () => this.picker.click());
    this.button = iconButton("send", "Send", () => (pane.running ? pane.stop() : this.submit()), { class: "send" });
    this.tray = new Tray(
      () => this.update(),
      () => this.focus(),
    );
    const row = element("div", { class: "writing" }, attach, this.area, this.button);
    const box = element("div", { class: "box" }, this.tray.element, row);
    const hint = hidden("p", "Enter sends, Shift+Enter begins a new line, slash lists commands.");
    this.element = element("form", { class: "composer", "aria-label": "Composer" });
    this.element.append(this.completion.element, box, this.picker, hint);
    this.element.addEventListener("submit", (event) => event.preventDefault());
    this.area.addEventListener("input", () => this.#changed());
    this.area.addEventListener("keydown", (event) => this.#keydown(event));
    this.area.addEventListener("paste", (event) => this.#paste(event));
    takeDrops(pane.container, (files) => this.insert(files));
    window.addEventListener("pagehide", this.#save);
    this.#key = draftKey(pane.id);
    this.#kept = recall(this.#key, null);
    this.area.value = this.#kept ?? "";
    this.tray.recall(this.#key);
    this.sizes = new ResizeObserver(() => {
      const { offsetHeight } = this.element;
      document.documentElement.style.setProperty("--composer", `${offsetHeight}px`); // what floats is above it
    });
    this.sizes.observe(this.element);
    this.update();
  }

  /** Show whether there is something to send or to stop. */
  update() {
    const { running } = this.pane;
    if (running !== this.shownRunning) relabel(this.button, running ? "stop" : "send", running ? "Stop (Esc)" : "Send");
    this.shownRunning = running;
    this.button.disabled = !running && !this.area.value.trim() && !this.tray.images.length;
    if (GROWS) return;
    this.area.style.setProperty("height", "auto");
    this.area.style.setProperty("height", `${this.area.scrollHeight}px`);
  }

  /** Send what is written. It stays remembered until the server has taken it. */
  async submit() {
    await this.#reading; // they belong to it
    const text = this.area.value.trim();
    if ((!text && !this.tray.images.length) || this.#isOnItsWay) return;
    if (this.pane.running) {
      this.pane.app.toast("info", BUSY);
      return;
    }
    this.#sending = text;
    this.#isOnItsWay = true;
    this.#command = text.startsWith("/") ? text : "";
    const images = this.#command ? [] : this.tray.take(); // a command leaves them for the next message
    this.#set("");
    this.completion.close();
    const taken = await this.pane.send(text, { images });
    this.#sending = "";
    this.#isOnItsWay = false;
    if (taken) return this.keep();
    this.#attach(images);
    return this.restore(text);
  }

  /** The server gives back a message that got no reply: its text, and its images, [{id, name}] of a conversation. */
  async takeBack({ conversation, text, images }) {
    this.restore(text);
    if (!images.length) return;
    const { fetchImage } = await import("../base/images.mjs");
    for (const each of images) {
      await this.#tell(async () => this.#attach([await fetchImage(each.name, imageAddress(conversation, each.id))]));
    }
  }

  /** Put back a message that got no reply, before what has been written since. */
  restore(text) {
    const rest = this.area.value;
    if (!rest.startsWith(text)) this.#set(rest ? `${text}\n${rest}` : text);
    this.keep();
  }

  /** The command that is handled has failed: put it back, unless something else is written already. It is selected, so
   *  that typing replaces it. */
  giveBack() {
    if (!this.#command || this.area.value) return;
    this.#set(this.#command);
    this.area.setSelectionRange(0, this.#command.length);
    this.completion.close();
  }

  /** No command is being handled any more. */
  settle() {
    if (!this.#sending) this.#command = "";
  }

  /** The commands are known now: complete the one that is being written. */
  completeCommands() {
    if (document.activeElement === this.area) this.completion.update();
  }

  /** Move the focus here. */
  focus() {
    this.area.focus({ preventScroll: true });
  }

  /** Keep the draft, and stop listening to the window. */
  close() {
    this.keep();
    this.tray.keep(this.#key);
    this.#closed = true;
    this.sizes.disconnect();
    window.removeEventListener("pagehide", this.#save);
  }

  /** Remember the draft. */
  keep() {
    clearTimeout(this.#timer);
    const key = draftKey(this.pane.id);
    const draft = [this.#sending, this.area.value].filter(Boolean).join("\n") || null;
    const isOurs = recall(this.#key, null) === this.#kept;
    if (this.pane.deleted || (this.#closed && !isOurs)) return; // another composer goes on with it
    if (key !== this.#key && isOurs) remember(this.#key, null); // a new conversation has got its id
    this.#key = key;
    this.#kept = draft;
    remember(key, draft);
  }

  #set(text) {
    this.area.value = text;
    this.#changed();
  }

  #changed() {
    this.completion.update();
    this.update();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(this.#save, SAVED_AFTER);
  }

  #keydown(event) {
    if (isWriting(event)) return;
    if (this.completion.key(event)) {
      this.update();
      event.preventDefault();
      event.stopPropagation();
    } else if (event.key === "Enter" && !event.shiftKey && !TOUCH.matches) {
      event.preventDefault();
      this.submit();
    } else if (event.key === "ArrowUp" && !this.area.value && !this.pane.running) {
      event.preventDefault();
      this.pane.editLast();
    }
  }

  /** Office programs copy a picture beside the text: the text is what is meant. */
  #paste(event) {
    const { files } = event.clipboardData;
    if (!files.length || event.clipboardData.types.includes("text/plain")) return;
    event.preventDefault();
    this.insert([...files]);
  }

  #picked() {
    this.insert([...this.picker.files]);
    this.picker.value = "";
  }

  /** Attach images, and insert text files as fenced blocks with their names. */
  insert(files) {
    this.#reading = this.#reading.then(() => this.#insertAll(files));
  }

  async #insertAll(files) {
    for (const file of files) await this.#tell(() => (isImage(file) ? this.#attachFile(file) : this.#insertFile(file)));
    this.focus();
  }

  async #attachFile(file) {
    if (!this.pane.takesImages) throw new Error(`${file.name}: ${NO_IMAGES}`);
    const { readImage } = await import("../base/images.mjs");
    this.#attach([await readImage(file)]);
    this.pane.app.announce(`Attached ${file.name}`);
  }

  async #insertFile(file) {
    const block = await fenced(file);
    const { value, selectionStart: at } = this.area;
    insertText(this.area, (at > 0 && value[at - 1] !== "\n" ? "\n" : "") + block);
  }

  /** Put images into the tray, or among those that the next composer of this conversation finds. */
  #attach(images) {
    this.tray.add(images);
    if (this.#closed) this.tray.keep(this.#key);
  }

  async #tell(work) {
    try {
      await work();
    } catch (error) {
      this.pane.app.toast("error", error.message);
    }
  }
}
