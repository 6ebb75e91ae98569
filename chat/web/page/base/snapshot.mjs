// What follows from a snapshot of a conversation.

/** The index of the first turn that the model sees. */
export function firstSeen({ settings, start, turns, running }) {
  return settings.history ? start : Math.max(0, running ? running.turn : turns.length - 1);
}
