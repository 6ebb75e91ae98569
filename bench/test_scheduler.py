"""Many requests at once, and speculative decoding: pytest --benchmark-only --bench-full bench/test_scheduler.py."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise
from statistics import median, quantiles
from typing import Any, NamedTuple

import pytest

from bench.measure import load_options
from bench.shapes import checkpoint
from bench.test_engine import prompt
from engine import LLM, SamplingParams, kernels
from engine.checkpoints import embedded
from engine.decoding.loop import Reply, choose_tokens, feed_tokens
from engine.decoding.scheduling.request import Request
from engine.decoding.scheduling.running import Work
from engine.decoding.scheduling.scheduler import PIECE, Scheduler
from engine.decoding.speculation import DraftModel, DraftStatistics
from engine.llm import PROMPT

REQUESTS, PROMPT_TOKENS, NEW_TOKENS = 16, 256, 128
LONG_TOKENS, SHORT_TOKENS, READERS = 4000, 64, 8
CHECKED, DRAFTED = (1, 2, 4, 8), 8  # tokens of a step; tokens that a draft model is timed for


@pytest.fixture(autouse=True)
def only_in_full(full: bool) -> None:
    """Five minutes."""
    if not full:
        pytest.skip("many requests: --bench-full")


@dataclass
class Trace:
    """What a scheduler did: each step with its seconds, and when each request got its tokens."""

    steps: list[tuple[Work, float]] = field(default_factory=list)
    arrivals: dict[Request, list[float]] = field(default_factory=lambda: defaultdict(list))

    def follow(self, scheduler: Scheduler, is_done: Callable[[], bool] = lambda: False) -> None:
        """Step until there is nothing to do, or until it is done."""
        before = time.perf_counter()
        while not is_done() and (work := scheduler.step()) is not None:
            now = time.perf_counter()
            self.steps.append((work, now - before))
            for request in work.requests:
                self.arrivals[request] += [now] * len(request.take())
            before = now

    def seconds(self, kind: str) -> list[float]:
        """Seconds of each step of a kind."""
        return [seconds for work, seconds in self.steps if work.kind == kind]


class Rates(NamedTuple):
    """Generated tokens per second of some requests that arrived at once, and what each of them waited."""

    total: float
    decoding: float  # in the time of the decode steps alone
    first_tokens: list[float]  # seconds to the first token of each


def rates(llm: LLM, count: int) -> Rates:
    """Serve `count` requests that arrive at once."""
    params = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)
    trace = Trace()
    with Scheduler(llm) as scheduler:
        requests = [scheduler.submit(prompt(llm, PROMPT_TOKENS, seed), params) for seed in range(count)]
        trace.follow(scheduler)
    wall = max(request.finished for request in requests) - requests[0].submitted
    first_tokens = [request.first_token - request.submitted for request in requests]
    decoded = count * (NEW_TOKENS - 1)  # the first token needs no step of its own
    return Rates(count * NEW_TOKENS / wall, decoded / sum(trace.seconds("decode")), first_tokens)


@pytest.mark.benchmark(group="requests that arrive at once")
def test_sixteen_requests(benchmark: Any, llm: LLM) -> None:
    """Their tokens per second beside those of one request, in turns."""
    alone: list[Rates] = []
    together: list[Rates] = []
    rates(llm, 2)  # warms up
    benchmark.pedantic(
        lambda: together.append(rates(llm, REQUESTS)), setup=lambda: alone.append(rates(llm, 1)), rounds=3
    )
    first_tokens = [seconds for rate in together for seconds in rate.first_tokens]
    total, decoding = median(rate.total for rate in together), median(rate.decoding for rate in together)
    benchmark.extra_info |= {
        "tokens_per_second": total,
        "times_one_request": total / median(rate.total for rate in alone),
        "decoding_tokens_per_second": decoding,
        "decoding_times_one_request": decoding / median(rate.decoding for rate in alone),
        "ttft_min": min(first_tokens),
        "ttft_median": median(first_tokens),
        "ttft_max": max(first_tokens),
        "ttft_max_over_min": median(max(rate.first_tokens) / min(rate.first_tokens) for rate in together),
        "ttft_alone": median(rate.first_tokens[0] for rate in alone),
    }


@pytest.mark.benchmark(group="a long prompt among replies")
def test_a_long_prompt_among_eight_replies(benchmark: Any, llm: LLM) -> None:
    """The gaps between the tokens of the replies while the prompt is computed: one piece and one step, each."""
    if llm.max_length < LONG_TOKENS + SHORT_TOKENS:
        pytest.skip(f"the window is {llm.max_length} tokens")
    warm_up = 8  # tokens before the long prompt arrives
    new_tokens = LONG_TOKENS // PIECE + 4 * warm_up
    params = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
    before, during = Trace(), Trace()
    with Scheduler(llm) as scheduler:
        replies = [scheduler.submit(prompt(llm, SHORT_TOKENS, seed), params) for seed in range(READERS)]
        before.follow(scheduler, lambda: min(reply.completion_tokens for reply in replies) >= warm_up)
        long = scheduler.submit(prompt(llm, LONG_TOKENS, READERS), params)
        for reply in replies:
            during.arrivals[reply].append(before.arrivals[reply][-1])
        benchmark.pedantic(lambda: during.follow(scheduler, lambda: long.completion_tokens > 0), rounds=1)
        assert all(reply.finish_reason is None for reply in replies)
    assert not any(a.kind == b.kind == "prefill" for (a, _), (b, _) in pairwise(during.steps))
    gaps = [b - a for reply in replies for a, b in pairwise(during.arrivals[reply])]
    quiet = [b - a for reply in replies for a, b in pairwise(before.arrivals[reply][2:])]
    pieces, steps = during.seconds("prefill"), during.seconds("decode")
    hundredths = quantiles(gaps, n=100, method="inclusive")
    milliseconds = {
        "gap_p50": median(gaps),
        "gap_p95": hundredths[94],
        "gap_p99": hundredths[98],
        "gap_max": max(gaps),
        "gap_before_p50": median(quiet),
        "piece_p50": median(pieces),
        "piece_max": max(pieces),
        "step_p50": median(steps),
        "step_max": max(steps),
        "largest_piece_and_step": max(a + b for (_, a), (_, b) in pairwise(during.steps)),
        "ttft_long": long.first_token - long.submitted,
    }
    benchmark.extra_info |= {f"{name}_ms": 1000 * seconds for name, seconds in milliseconds.items()}
    benchmark.extra_info["tokens_per_second"] = len(gaps) / benchmark.stats.stats.median


PARAGRAPH = """The Great Barrier Reef, off the coast of Queensland in Australia, is the world's largest coral reef
system. It is made of about 2,900 individual reefs and 900 islands, and stretches for more than 2,300 kilometres. The
reef can be seen from outer space and is the largest structure made by living organisms. It supports a wide diversity of
life and was selected as a World Heritage Site in 1981. Warmer water, storms and starfish have damaged its corals."""
CODE = """def average(values):
    total = 0
    count = 0
    for value in values:
        total = total + value
        count = count + 1
    if count == 0:
        return None
    result = total / count
    return result


print(average([1, 2, 3]))
print(average([4, 5, 6]))
print(average([]))"""
TASKS = {
    "summary": f"Summarize this text in a few sentences.\n\n{PARAGRAPH}",
    "edit": f"Rename the variable `total` to `summed`. Write the whole code again.\n\n```python\n{CODE}\n```",
    "story": "Write a story about a lighthouse keeper and a whale.",
}


@cache
def smollm2(weight_format: str) -> LLM:
    """SmolLM2 in a weight format; skipped if it is not installed."""
    if embedded.default_model() != embedded.SMOLLM2:
        pytest.skip("SmolLM2 is not installed: make smollm2")
    llm = LLM.load(embedded.SMOLLM2, "cpu", **load_options(weight_format))
    kernels.wait()
    return llm


def reply_to(llm: LLM, ids: Sequence[int]) -> tuple[list[int], float, DraftStatistics | None]:
    """The tokens of a greedy reply, its decoded tokens per second, and the counts of its drafts."""
    with llm.scheduler() as scheduler:
        request = scheduler.submit(ids, SamplingParams(max_new_tokens=128), continues=False)
        tokens = [event.token_id for event in request]
        speculator = scheduler.running.speculator
        rate = (len(tokens) - 1) / request.decode_seconds
        return tokens, rate, speculator.statistics if speculator is not None else None


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("weight_format", ["bfloat16", "int8", "int4", "gguf"])
@pytest.mark.benchmark(group="prompt look-up with SmolLM2")
def test_prompt_lookup(benchmark: Any, weight_format: str, task: str) -> None:
    """A reply with drafts beside the same one without, in turns."""
    llm = smollm2(weight_format)
    ids = llm.chat_template.encode([{"role": "user", "content": TASKS[task]}])
    plain: list[float] = []
    drafted: list[float] = []
    texts, counts = [], []

    def reply_without() -> None:
        llm.draft = None
        tokens, rate, _ = reply_to(llm, ids)
        plain.append(rate)
        texts.append(tokens)

    def reply_with() -> None:
        llm.draft = PROMPT
        tokens, rate, statistics = reply_to(llm, ids)
        drafted.append(rate)
        texts.append(tokens)
        counts.append(statistics)

    benchmark.pedantic(reply_with, setup=reply_without, rounds=3)
    llm.draft = None
    assert all(text == texts[0] for text in texts)
    sums = {name: sum(getattr(count, name) for count in counts) for name in ("steps", "tokens", "drafted", "right")}
    benchmark.extra_info |= {
        "reply_tokens": len(texts[0]),
        "tokens_per_second": median(drafted),
        "plain_tokens_per_second": median(plain),
        "speedup": median(with_ / without for with_, without in zip(drafted, plain, strict=True)),
        "tokens_per_step": sums["tokens"] / sums["steps"],
        "drafted_share": sums["drafted"] / sums["tokens"],
        "right_share": sums["right"] / max(sums["drafted"], 1),
        "format": weight_format,
        "kernels": kernels.describe(llm.dtype),
    }


@pytest.mark.parametrize("weight_format", ["bfloat16", "int4"])
@pytest.mark.benchmark(group="a draft model")
def test_costs_of_a_draft_model(benchmark: Any, weight_format: str) -> None:
    """Qwen2.5-1.5B's shape with a draft of 0.5B: what checked and drafted tokens cost.

    The weights are random, so they say nothing about how often drafts are right. From the costs follows how often they
    have to be: the smallest rate at which drafting a number of tokens gives more tokens per second than none.
    """
    options = load_options(weight_format)
    llm, small = (LLM.load(checkpoint(f"qwen2.5-{size}"), "cpu", **options) for size in ("1.5b", "0.5b"))
    kernels.wait()
    reply = begin(llm)
    sequence, length = reply.sequence, len(reply.sequence.ids)
    drafter = DraftModel(small.model, small.max_length, llm.config.vocab_size)
    ids = prompt(llm, max(CHECKED))

    def check(tokens: int) -> None:
        draft = [ids[: tokens - 1]]
        choose_tokens([reply], feed_tokens([reply], draft), draft)
        del sequence.ids[length:]
        sequence.state.rewind(sequence.row, length)

    measured: dict[int, list[float]] = defaultdict(list)  # by the tokens of a step; 0: of a drafted token

    def measure_all() -> None:
        for tokens in CHECKED:
            measured[tokens].append(seconds_of(partial(check, tokens)))
        measured[0].append(seconds_of(lambda: drafter.propose([reply], [DRAFTED])) / DRAFTED)

    measure_all()  # warms up
    measured.clear()
    benchmark.pedantic(measure_all, rounds=9)
    seconds = {key: median(values) for key, values in measured.items()}
    benchmark.extra_info |= {f"seconds_of_{tokens}": seconds[tokens] for tokens in CHECKED}
    benchmark.extra_info |= {"seconds_of_a_drafted_token": seconds[0], "format": weight_format}
    for tokens in CHECKED[1:]:
        cost = (seconds[tokens] + (tokens - 1) * seconds[0]) / seconds[1]
        benchmark.extra_info[f"pays_from_{tokens - 1}"] = rate_that_pays(cost, tokens)


def begin(llm: LLM) -> Reply:
    """A reply to a prompt of 128 tokens, after its first token."""
    sequence = llm.sequence()
    sequence.feed(prompt(llm, 128))
    reply = Reply(sequence, SamplingParams(ignore_eos=True))
    assert sequence.logits is not None
    (choices,) = choose_tokens([reply], sequence.logits[None])
    reply.accept(choices)
    return reply


def seconds_of(run: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def rate_that_pays(cost: float, tokens: int) -> float | None:
    """Smallest rate of right drafts at which a step of `tokens` gives more tokens than its cost in plain steps.

    With rate p it gives 1 + p + … + p^(tokens - 1). None: even if all are right it does not.
    """
    thousandths = (number / 1000 for number in range(1001))
    return next((rate for rate in thousandths if sum(rate**power for power in range(tokens)) > cost), None)
