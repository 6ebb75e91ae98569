"""Prefill and decode at Qwen2.5-0.5B's shape (random weights, bfloat16), beside transformers' generate.

pytest --benchmark-only bench/test_generate.py
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.shapes import checkpoint
from engine import LLM, SamplingParams

IDS = torch.randint(0, 150_000, (2000,), generator=torch.Generator().manual_seed(0)).tolist()
NEW = 24


@pytest.fixture(scope="module")
def folder() -> Path:
    """Random weights of the shape, about 1 GB."""
    return checkpoint("qwen2.5-0.5b")


@pytest.fixture(scope="module", params=["bareloop", "transformers"])
def generate(request: pytest.FixtureRequest, folder: Path) -> Any:
    """generate(prompt length, new tokens): greedy, by either engine."""
    if request.param == "bareloop":
        llm = LLM.load(folder)
        return lambda length, new: llm.generate([IDS[:length]], SamplingParams(max_new_tokens=new, ignore_eos=True))
    transformers = pytest.importorskip("transformers")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device)
    options = {"do_sample": False, "pad_token_id": 0}

    def run(length: int, new: int) -> None:
        ids = torch.tensor([IDS[:length]], device=device)
        model.generate(ids, max_new_tokens=new, min_new_tokens=new, **options).cpu()

    return run


@pytest.mark.benchmark(group="prefill 512")
def test_prefill(benchmark: Any, generate: Any) -> None:
    """512 tokens to the first new one."""
    benchmark.pedantic(generate, args=(512, 1), rounds=7, warmup_rounds=2)
    benchmark.extra_info["tokens_per_second"] = 512 / benchmark.stats.stats.median


@pytest.mark.benchmark(group="decode")
def test_decode(benchmark: Any, generate: Any) -> None:
    """24 tokens after 128; the prompt's own time is measured and taken off in extra_info."""
    start = time.perf_counter()
    generate(128, 1)
    generate(128, 1)
    prompt = (time.perf_counter() - start) / 2
    benchmark.pedantic(generate, args=(128, NEW + 1), rounds=5, warmup_rounds=1)
    benchmark.extra_info["tokens_per_second"] = NEW / (benchmark.stats.stats.median - prompt)


@pytest.mark.benchmark(group="decode after 2,000 tokens")
def test_decode_stays_flat(benchmark: Any, folder: Path) -> None:
    """256 tokens after 2,000: the median of the first 32 and of the last 32, in milliseconds."""
    llm = LLM.load(folder)
    times: list[float] = []

    def run() -> None:
        for _ in llm.stream(IDS, SamplingParams(max_new_tokens=257, ignore_eos=True)):
            times.append(time.perf_counter())

    benchmark.pedantic(run, rounds=1)
    each = torch.tensor(times).double().diff() * 1000
    benchmark.extra_info |= {"first_32_ms": float(each[:32].median()), "last_32_ms": float(each[-32:].median())}
