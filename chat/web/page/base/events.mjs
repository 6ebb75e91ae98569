// The event stream: one per tab, open only while the tab is visible. Each connection begins with whole snapshots, so
// nothing is lost by closing it.

import * as api from "./api.mjs";

const FIRST_WAIT = 500; // ms; doubled with each failure, up to LONGEST_WAIT
const LONGEST_WAIT = 5000;

/** Keeps a stream about `ids` open for a tab. Calls `onEvent(event)`, and `onStatus(status, text)`: connected,
 *  lost (it tries again), refused, or missing (there is no such conversation). */
export class EventStream {
  #source = null;
  #ids = [];
  #timer = 0;
  #wait = FIRST_WAIT;

  constructor(tab, onEvent, onStatus) {
    this.tab = tab;
    this.onEvent = onEvent;
    this.onStatus = onStatus;
    document.addEventListener("visibilitychange", () => this.#connect());
    window.addEventListener("online", () => this.#connect());
    window.addEventListener("pagehide", () => this.#close());
    window.addEventListener("pageshow", (event) => event.persisted && this.#connect());
  }

  /** Follow these conversations from now on. */
  follow(ids) {
    this.#ids = ids;
    this.#connect();
  }

  #close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #connect() {
    this.#close();
    if (document.hidden) return;
    const source = new EventSource(api.eventsAddress(this.#ids, this.tab));
    this.#source = source;
    source.onopen = () => {
      this.#wait = FIRST_WAIT;
      this.onStatus("connected", "");
    };
    source.onmessage = (message) => {
      if (this.#source === source) this.onEvent(JSON.parse(message.data));
    };
    source.onerror = () => {
      if (this.#source !== source) return;
      const refused = source.readyState === EventSource.CLOSED; // else the server is not there
      this.#close();
      if (refused) this.#explain();
      else this.#retry();
    };
  }

  #retry() {
    this.onStatus("lost", "Connection lost; trying again…");
    this.#timer = setTimeout(() => this.#connect(), this.#wait);
    this.#wait = Math.min(2 * this.#wait, LONGEST_WAIT);
  }

  /** Ask why: an EventSource does not say it. */
  async #explain() {
    const ids = this.#ids;
    const problem = await api.refusal(api.eventsAddress(ids, this.tab));
    if (ids !== this.#ids || this.#source) return; // the user went on meanwhile
    if (problem?.status === 404) {
      this.follow([]); // the list of conversations is still there
      this.onStatus("missing", problem.text);
    } else if (problem?.status === 401 || problem?.status === 403) {
      this.onStatus("refused", "The server was started again. Open the address that it printed.");
    } else this.#retry();
  }
}
