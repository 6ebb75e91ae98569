"""Random logits and sampling parameters, for the tests of samplers."""

from __future__ import annotations

import math
import random

import numpy as np
import torch

from engine.decoding.draws import INVALID, uniform
from engine.decoding.params import SamplingParams
from engine.decoding.sampling import Context


def random_params(source: random.Random) -> SamplingParams:
    """Parameters of which any may be off, harmless, or as strict as possible."""
    return SamplingParams(
        temperature=source.choice([0.0, 1e-3, 0.7, 1.0, 1.0, 3.0, 1e5]),
        top_k=source.choice([0, 0, 1, 3, 50, 900, 10**6]),
        top_p=source.choice([1.0, 1.0, 1e-6, 0.3, 0.9, 0.999, 1 - 1e-12]),
        min_p=source.choice([0.0, 0.0, 1e-9, 0.02, 0.5, 1.0]),
    )


def random_logits(source: random.Random, rows: int, vocab_size: int, dtype: torch.dtype) -> torch.Tensor:
    """Flat, peaked and tied rows, some with excluded tokens, a few invalid."""
    logits = torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(source.getrandbits(32)))
    for row in logits:
        row.mul_(source.choice([0.0, 0.01, 1.0, 3.0, 10.0, 100.0]))
        if source.random() < 0.2:
            row.copy_((row * 2).round() / 2)
        if source.random() < 0.3:
            row[source.sample(range(vocab_size), vocab_size // 2)] = -math.inf
        if source.random() < 0.1:
            row[source.randrange(vocab_size)] = source.choice([math.nan, math.inf])
        if source.random() < 0.05:
            row.fill_(-math.inf)
    return logits.to(dtype)


def random_contexts(source: random.Random, rows: int) -> list[Context]:
    return [
        Context(random_params(source), [1] * source.randrange(1, 200), 0, source.choice([row, -row, 2**64 - 1 - row]))
        for row in range(rows)
    ]


def exact_token(logits: torch.Tensor, context: Context) -> int:
    """The token of one row, by sums in float64. The code for CPUs adds up to a few thousand weights in float32."""
    params, values = context.params, logits.float().numpy()
    largest = values.max()
    if not np.isfinite(largest):
        return INVALID
    if params.temperature == 0:
        return int(values.argmax())
    scaled = (values - largest) / np.float32(params.temperature)
    weights = np.exp(scaled.astype(np.float64))
    lowest = -np.inf
    if 0 < params.top_k < len(values):
        lowest = np.sort(scaled)[-params.top_k]
    if params.top_p < 1:
        order = np.argsort(-scaled, kind="stable")
        mass = np.cumsum(np.where(scaled >= lowest, weights, 0)[order])
        lowest = scaled[order[np.searchsorted(mass, params.top_p * mass[-1])]]
    if params.min_p > 0:
        lowest = max(lowest, np.float32(math.log(params.min_p)))
    mass = np.cumsum(np.where(scaled >= lowest, weights, 0))
    number = float(uniform([context.seed], [len(context.ids)]))
    return int(np.searchsorted(mass, number * mass[-1], side="right"))
