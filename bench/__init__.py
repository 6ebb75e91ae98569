"""Timings: pytest --benchmark-only, and programs that set engines side by side."""
