"""Mamba and RWKV at the shapes of their smallest checkpoints (random weights, float32), beside transformers.

pytest --benchmark-only bench/test_recurrent.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch

from bench.shapes import checkpoint
from engine import LLM, SamplingParams

IDS = torch.randint(2, 2000, (512,), generator=torch.Generator().manual_seed(0)).tolist()
PROMPT, NEW, ROUNDS = 4, 32, 5


@pytest.fixture(scope="module", params=["mamba-130m", "rwkv-169m"])
def engines(request: pytest.FixtureRequest) -> tuple[LLM, Any]:
    """Ours and theirs, with the same weights."""
    transformers = pytest.importorskip("transformers")
    folder = checkpoint(request.param)
    llm = LLM.load(folder, dtype="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(llm.device).eval()
    return llm, theirs


def alternated(benchmark: Any, ours: Callable[[], Any], theirs: Callable[[], Any]) -> None:
    """Both in turn; the ratio of their medians is told."""
    seconds: list[float] = []

    def one_round() -> None:
        start = time.perf_counter()
        theirs()
        seconds.append(time.perf_counter() - start)

    theirs()
    benchmark.pedantic(ours, setup=one_round, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info["transformers_seconds"] = median(seconds)
    benchmark.extra_info["times_as_fast"] = median(seconds) / benchmark.stats.stats.median


@pytest.mark.benchmark(group="recurrent prefill 512")
def test_prefill(benchmark: Any, engines: tuple[LLM, Any]) -> None:
    llm, model = engines

    def ours() -> None:
        sequence = llm.sequence()
        sequence.feed(IDS)
        sequence.close()

    def theirs() -> None:
        with torch.inference_mode():
            model(torch.tensor([IDS], device=llm.device), use_cache=True)

    alternated(benchmark, ours, theirs)


@pytest.mark.benchmark(group="recurrent decode")
def test_decode(benchmark: Any, engines: tuple[LLM, Any]) -> None:
    llm, model = engines
    params = SamplingParams(max_new_tokens=NEW, ignore_eos=True)
    ids = torch.tensor([IDS[:PROMPT]], device=llm.device)

    def theirs() -> None:
        model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0)

    alternated(benchmark, lambda: llm.generate([IDS[:PROMPT]], params), theirs)
