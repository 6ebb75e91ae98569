"""Models on OpenAI-compatible servers: whom to ask, what to ask, and how to read the answers."""
