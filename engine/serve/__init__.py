"""The HTTP server: OpenAI's API on the scheduler."""
