"""Answers and judgments: what a benchmark needs whose answers a model judges."""
