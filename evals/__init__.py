"""Benchmarks scored from logits, by the protocols of lm-evaluation-harness."""
