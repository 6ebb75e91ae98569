"""A load generator for any OpenAI-compatible server: `python -m bench.load`."""
