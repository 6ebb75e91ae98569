// What the browser remembers: theme, drafts. Storage may be forbidden or full; then nothing is remembered.

const PREFIX = "bareloop.";

/** Remember a value (JSON) in this browser; null forgets it. */
export function remember(key, value) {
  try {
    if (value === null) localStorage.removeItem(PREFIX + key);
    else localStorage.setItem(PREFIX + key, JSON.stringify(value));
  } catch {
    // a private window, or no room: the page works without
  }
}

/** The remembered value, or `fallback`. */
export function recall(key, fallback) {
  try {
    const text = localStorage.getItem(PREFIX + key);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
}

/** Under which the message that is being written in a conversation is remembered; null: a new one. */
export const draftKey = (id) => `draft.${id ?? "new"}`;

/** Under which the messages that are being edited in a conversation are remembered. */
export const editsKey = (id) => `edits.${id ?? "new"}`;

/** Forget what is being written in a conversation. Returns a function that remembers it again. */
export function forgetDrafts(id) {
  const kept = [draftKey(id), editsKey(id)].map((key) => [key, recall(key, null)]);
  for (const [key] of kept) remember(key, null);
  return () => {
    for (const [key, value] of kept) remember(key, value);
  };
}

/** The name of this tab for the server: it stays the same when the page is loaded again. */
export function tabName() {
  const key = `${PREFIX}tab`;
  const fresh = Array.from(crypto.getRandomValues(new Uint32Array(4)), (value) => value.toString(16)).join("");
  try {
    const name = sessionStorage.getItem(key) ?? fresh;
    sessionStorage.setItem(key, name);
    return name;
  } catch {
    return fresh;
  }
}
