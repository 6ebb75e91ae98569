"""Benchmark questions and texts: rows from the hub or from local files."""
