"""A client of OpenAI-compatible servers, ours or others'."""
