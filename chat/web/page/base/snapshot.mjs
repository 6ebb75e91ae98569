// What follows from a snapshot of a conversation.

/** The message of a turn as one text, with the names of its images before it. */
export function spoken({ message, images }) {
  return [...(images ?? []).map(({ name }) => `[image ${name}]`), message ?? ""].join(" ").trim();
}

/** The index of the first turn that the model sees. */
export function firstSeen({ settings, start, turns, running }) {
  return settings.history ? start : Math.max(0, running ? running.turn : turns.length - 1);
}
