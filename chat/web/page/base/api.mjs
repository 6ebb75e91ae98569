// The requests to the server, one function for each path. All raise an Error with one readable line.

const CONVERSATIONS = "/web/conversations";

/** What a request says when there is no server. */
export const NO_ANSWER = "the server does not answer; is it still running?";

const path = (id, name) => `${CONVERSATIONS}/${encodeURIComponent(id)}/${name}`;

async function request(address, options = {}) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Error(NO_ANSWER);
  }
  if (!response.ok) throw new Error(await failure(response));
  return response.json();
}

async function failure(response) {
  const content = await response.json().catch(() => ({}));
  return content.error?.message ?? `the server answered ${response.status} ${response.statusText}`;
}

function post(address, content = {}) {
  const headers = { "Content-Type": "application/json" };
  return request(address, { method: "POST", headers, body: JSON.stringify(content) });
}

/** Models, commands, sampling parameters, strategies. */
export const state = () => request("/web/state");

/** Conversations that have these words in their texts: {ids}. */
export const search = (words) => request(`/web/search?q=${encodeURIComponent(words)}`);

/** The deleted conversations, newest first; `restore` takes one back. */
export const deleted = () => request("/web/deleted");

/** Begin a conversation; {model, copy_of, settings} are optional. Returns {id}. */
export const create = (options = {}) => post(CONVERSATIONS, options);

/** Send a message or a command; `images` of a message: [{name, image}]. The answer comes as events. */
export const line = (id, text, tab, images = []) => post(path(id, "line"), { line: text, tab, images });

/** Address of an image of a conversation. */
export const imageAddress = (id, image) => path(id, `images/${image}`);

/** Stop the reply that is running; its part is kept. */
export const stop = (id) => post(path(id, "stop"));

/** Delete a conversation; `restore` takes it back. Returns {forgotten}: the number of its turns that the memory had. */
export const remove = (id) => post(path(id, "delete"));

/** Take a deletion back. */
export const restore = (id) => post(path(id, "restore"));

/** Address of the download; `format` is json or markdown. */
export const exportAddress = (id, format) => `${path(id, "export")}?format=${format}`;

/** Import the parsed content of a saved file. Returns {id}. */
export const importFile = (name, content) => post("/web/import", { name, content });

/** Tokens of a reply with their probabilities. */
export const tokens = (id, turn) => request(`${path(id, "tokens")}?turn=${turn}`);

/** Tokens of the prompt as the model sees it. */
export const window_ = (id, scored = false) => request(`${path(id, "window")}?scored=${scored ? 1 : 0}`);

/** What a token costs: bytes, bandwidth. */
export const costs = (id) => request(path(id, "costs"));

/** Address of the event stream about these conversations for a tab. */
export function eventsAddress(ids, tab) {
  const query = [...ids.map((id) => ["conversation", id]), ["tab", tab]];
  return `/web/events?${new URLSearchParams(query)}`;
}

/** Why a stream is refused: {status, text}; null if it is not. */
export async function refusal(address) {
  const stop = new AbortController();
  try {
    const response = await fetch(address, { signal: stop.signal });
    if (response.ok) return null;
    return { status: response.status, text: await failure(response) };
  } catch {
    return null;
  } finally {
    stop.abort(); // it would go on for ever
  }
}
