"""Benchmark questions and texts, from the hub or from local files."""
