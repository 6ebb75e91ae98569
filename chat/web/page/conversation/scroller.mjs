// Keeps the end of a conversation in sight while the user is at the end, and offers a way back to it otherwise.

import { element, icon } from "../base/dom.mjs";

const NEAR = 48; // px from the end that count as being there
const FAR = 1e9;

/** Follows the end of `content`, which `scroller` scrolls. `follower.button` belongs beside the scroller. */
export class Follower {
  following = true;
  #top = 0;
  #kept = null; // {node, top, scrolled}: what stays at its place on the screen

  constructor(scroller, content) {
    this.scroller = scroller;
    const click = () => this.toEnd();
    this.button = element("button", { type: "button", class: "to-end", hidden: true, onclick: click });
    this.button.append(icon("down"), "To the end");
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    // the size is known when this is called, so that setting the position costs no layout
    const observer = new ResizeObserver(() => this.#settle());
    observer.observe(content);
    observer.observe(scroller);
  }

  /** Go to the end, and follow it. */
  toEnd() {
    this.#kept = null;
    this.following = true;
    this.button.hidden = true;
    this.#settle();
  }

  /** Keep a node where it is on the screen while what is around it changes, until the user scrolls. */
  keep(node) {
    const { scrollTop } = this.scroller;
    this.following = false;
    this.#kept = { node, top: node.offsetTop - scrollTop, scrolled: scrollTop };
  }

  #settle() {
    if (this.#kept?.node.isConnected) {
      this.scroller.scrollTop = this.#kept.node.offsetTop - this.#kept.top;
      this.#kept.scrolled = this.scroller.scrollTop;
    }
    if (this.following) this.scroller.scrollTop = FAR;
    else this.#showButton();
  }

  #scrolled() {
    const { scrollTop } = this.scroller;
    const up = scrollTop < this.#top - 1;
    this.#top = scrollTop;
    if (this.#kept) {
      if (Math.abs(scrollTop - this.#kept.scrolled) < 2) return this.#showButton(); // it was not the user
      this.#kept = null;
    }
    if (this.#left() < NEAR) this.following = true;
    else if (up) this.following = false;
    return this.#showButton();
  }

  #left() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight;
  }

  #showButton() {
    this.button.hidden = this.following || this.#left() < NEAR;
  }
}
