"""Typical uses: a question of a benchmark, a turn of a chat. pytest --benchmark-only bench/test_use.py."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from bench.measure import Limits, Work, prefilling, timed
from bench.test_engine import prompt
from bench.ttft import message
from engine import LLM
from engine.runtime.device import dtype_name, synchronize

SHOTS, QUESTION, QUESTIONS = 600, 90, 16  # tokens of the examples and of a question; questions with the same examples
MESSAGE, REPLY = 80, 16  # tokens


@pytest.mark.benchmark(group="MMLU question")
def test_mmlu_question(benchmark: Any, llm: LLM, limits: Limits) -> None:
    """Sixteen questions after one prefix of five examples, four letters each, as `evals.mmlu` scores them."""
    packed = LLM.load(
        str(llm.folder), device=str(llm.device), dtype=dtype_name(llm.dtype), quant=llm.quant
    )  # a copy, as chats do not pack weights
    packed.pack()
    shots = prompt(llm, SHOTS)
    letters = prompt(llm, 4, seed=1)
    questions = [shots + prompt(llm, QUESTION, seed) for seed in range(2, 2 + QUESTIONS)]
    requests = [(question, [letter]) for question in questions for letter in letters]
    first, each = prefilling(llm, SHOTS), prefilling(llm, QUESTION, after=SHOTS)
    flops = first.flops + QUESTIONS * each.flops
    work = Work(SHOTS + QUESTION * QUESTIONS, first.nbytes + each.nbytes, flops)
    timed(benchmark, limits, llm, lambda: packed.score(requests), work, rounds=3)
    benchmark.extra_info["questions_per_second"] = QUESTIONS / benchmark.extra_info["latency_p50"]


@pytest.mark.benchmark(group="chat turn")
def test_chat_turn(benchmark: Any, llm: LLM) -> None:
    """A message and its reply in a growing conversation; `ttft` is the time a person waits."""
    from chat.conversation.events import Reply, Settings
    from chat.conversation.session import Session
    from chat.models.local import LocalModel

    sampling = {"temperature": 0.0, "max_new_tokens": REPLY, "ignore_eos": True}
    session = Session(LocalModel(llm), Settings(strategy="none", sampling=sampling))
    random = Random(0)
    times: list[float] = []

    def turn(text: str) -> None:
        replies = [event for event in session.send(text) if isinstance(event, Reply)]
        synchronize(llm.device)
        times.append(replies[-1].ttft)

    benchmark.pedantic(turn, setup=lambda: ((message(llm, MESSAGE, random),), {}), rounds=5, warmup_rounds=1)
    benchmark.extra_info |= {"ttft": sorted(times[1:])[2], "device": llm.device.type}
