"""Time to choose one token from a large vocabulary, beside transformers' top-p.

pytest --benchmark-only bench/test_sampling.py
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.decoding.params import SamplingParams
from engine.decoding.sampling import Context, choose

WAYS = {
    "greedy": SamplingParams(),
    "temperature": SamplingParams(temperature=1.0),
    "top_k": SamplingParams(temperature=1.0, top_k=50),
    "top_p": SamplingParams(temperature=1.0, top_p=0.9),
}


def logits() -> torch.Tensor:
    """One row of 152,000 logits, about as peaked as a trained model's."""
    return 4 * torch.randn(1, 152_000, generator=torch.Generator().manual_seed(0))


@pytest.mark.benchmark(group="sampling")
@pytest.mark.parametrize("way", WAYS)
def test_choose(benchmark: Any, way: str) -> None:
    """Choose a token, without penalties."""
    row = logits()
    benchmark.pedantic(choose, args=(row, [Context(WAYS[way], [1], 1, 7)]), rounds=50, warmup_rounds=5)


@pytest.mark.benchmark(group="sampling")
def test_transformers_top_p(benchmark: Any) -> None:
    """The same with transformers' warper and torch.multinomial."""
    transformers = pytest.importorskip("transformers")
    row, warper = logits(), transformers.TopPLogitsWarper(0.9)
    benchmark.pedantic(lambda: torch.multinomial(warper(None, row).softmax(-1), 1), rounds=20, warmup_rounds=2)
