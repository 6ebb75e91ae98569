// The sidebar as a drawer on a phone, and as a column that can be hidden elsewhere.

const NARROW = matchMedia("(max-width: 760px)"); // a phone

/** Opens and closes the sidebar. `changed()` is called when it does. */
export class Drawer {
  constructor(changed) {
    this.changed = changed;
    this.sidebar = document.getElementById("sidebar");
    this.button = document.getElementById("menu");
    this.button.addEventListener("click", () => this.toggle());
    document.getElementById("shade").addEventListener("click", () => this.toggle(false));
    this.sidebar.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.defaultPrevented || !NARROW.matches) return;
      event.preventDefault(); // it stops no reply
      this.toggle(false);
    });
    NARROW.addEventListener("change", () => this.toggle(!NARROW.matches));
    this.toggle(!NARROW.matches);
  }

  /** Whether it covers the conversation. */
  get covers() {
    return this.open && NARROW.matches;
  }

  /** Open or close it. */
  toggle(open = !this.open) {
    const focus = this.open !== undefined && NARROW.matches;
    this.open = open;
    document.body.classList.toggle("sidebar-open", open);
    this.sidebar.inert = !open;
    this.changed();
    this.button.setAttribute("aria-expanded", String(open));
    if (focus) (open ? this.sidebar.querySelector("button") : this.button).focus();
  }

  /** Close it after a choice, on a phone. */
  chosen() {
    if (this.covers) this.toggle(false);
  }
}
