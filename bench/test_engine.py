"""Prefill and decode, beside the limits of the hardware: pytest --benchmark-only bench/test_engine.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.measure import Limits, decoding, prefilling, timed
from engine import LLM, SamplingParams
from engine.decoding.loop import decode

STEPS = 40  # tokens per row


def prompt(llm: LLM, length: int, seed: int = 0) -> list[int]:
    """Seeded random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, llm.config.vocab_size, (length,), generator=generator).tolist()


@pytest.mark.benchmark(group="prefill")
@pytest.mark.parametrize("tokens", [128, 512, 2048])
def test_prefill(benchmark: Any, llm: LLM, limits: Limits, tokens: int) -> None:
    """Prefill a prompt up to the logits of its last token: the time to the first token."""
    ids = prompt(llm, tokens)

    def run() -> None:
        sequence = llm.sequence()
        sequence.feed(ids)
        sequence.close()

    timed(benchmark, limits, llm, run, prefilling(llm, tokens), rounds=2 if tokens > 1000 else 5)
    benchmark.extra_info["ttft"] = benchmark.extra_info["latency_p50"]


@pytest.mark.benchmark(group="decode")
@pytest.mark.parametrize("rows", [1, 4, 8, 16, 32])
@pytest.mark.parametrize("context", [128, 2048])
def test_decode(benchmark: Any, llm: LLM, limits: Limits, context: int, rows: int, full: bool) -> None:
    """One step of all rows, each with its own prompt: the time per output token (TPOT)."""
    if context * rows > 2048 and not full:
        pytest.skip("prompts of more than 2,048 tokens in total: --bench-full")
    if context + STEPS + 2 > llm.max_length:
        pytest.skip(f"the window is {llm.max_length} tokens")
    sequences = llm.prefilled_sequences([prompt(llm, context, seed) for seed in range(rows)])
    events = decode(sequences, SamplingParams(max_new_tokens=STEPS + 2, ignore_eos=True))

    def run() -> None:
        for _ in range(rows):
            next(events)

    run()  # the first token needs no step: its logits are the prompt's
    timed(benchmark, limits, llm, run, decoding(llm, context, rows), rounds=STEPS)
