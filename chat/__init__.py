"""The chat agent: a conversation that never overflows its window and never forgets silently."""
