"""The HTTP server under load, beside the scheduler alone and llama.cpp's server.

pytest --benchmark-only bench/test_serve.py; with --bench-full 1, 4 and 16 clients, and llama.cpp where llama-server is
in the PATH.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest
import torch

from bench.load.client import Client
from bench.load.figures import Figures, percentile
from bench.load.pacing import Limit, measure
from bench.load.prompts import RandomWords, measure_words
from bench.load.records import Setting
from bench.load.servers import LLAMA_SERVER, bareloop_command, llama_command, started
from bench.measure import commit
from bench.shapes import checkpoint
from engine import LLM, SamplingParams
from engine.checkpoints import embedded
from engine.checkpoints.gguf.source import gguf_files
from engine.checkpoints.hub import find_model
from engine.decoding.scheduling.request import Request
from engine.decoding.scheduling.scheduler import Scheduler
from engine.runtime.device import dtype_name

TARGETS = {"ttft_target": 0.5, "tpot_target": 0.05}
CLIENTS = (1, 4, 16)
INPUT, OUTPUT, PER_CLIENT, ROUNDS = 256, 128, 2, 3


class Size(NamedTuple):
    """A load: clients that each send so many requests, one after another."""

    clients: int
    input_tokens: int
    output_tokens: int

    @property
    def requests(self) -> int:
        return self.clients * PER_CLIENT


SHORT = Size(4, 64, 16)  # the case that always runs


def loaded(url: str, size: Size, numbers: Iterator[int]) -> Figures:
    """The figures of a load on a server. `numbers`: of the prompts, so that none comes twice."""

    async def work() -> Figures:
        async with Client(url, output_tokens=size.output_tokens) as client:
            client.model = (await client.models())[0]
            words = RandomWords(size.input_tokens, costs=await measure_words(client))
            setting = Setting("concurrency", size.clients)
            await measure(client, setting, Limit(size.requests), words, numbers)
            return Figures.of(setting, **TARGETS)

    return asyncio.run(work())


class Alone(NamedTuple):
    """The same load on the scheduler alone."""

    output_rate: float
    ttft: list[float]


def scheduled(llm: LLM, size: Size, numbers: Iterator[int]) -> Alone:
    """The same load in this process: a request is submitted when another one is done."""
    tokenizer = llm.tokenizer
    words = RandomWords(size.input_tokens)
    costs = {word: len(tokenizer.encode(f"time {word}")) - len(tokenizer.encode("time")) for word in words.costs}
    words = RandomWords(size.input_tokens, costs=costs)
    params = SamplingParams(max_new_tokens=size.output_tokens, ignore_eos=True)
    prompts = iter([tokenizer.encode(words.prompt(next(numbers))) for _ in range(size.requests)])
    done: list[Request] = []
    with Scheduler(llm) as scheduler:
        running = [scheduler.submit(next(prompts), params) for _ in range(size.clients)]
        requests = list(running)
        while running:
            scheduler.step()
            for request in running:
                request.take()
            finished = [request for request in running if request.finish_reason is not None]
            running = [request for request in running if request.finish_reason is None]
            done += finished
            new = [scheduler.submit(ids, params) for ids in itertools.islice(prompts, len(finished))]
            running += new
            requests += new
    seconds = max(request.finished for request in done) - min(request.submitted for request in done)
    tokens = sum(request.completion_tokens for request in done)
    return Alone(tokens / seconds, [request.first_token - request.submitted for request in requests])


def add(benchmark: Any, prefix: str, rounds: list[Figures]) -> None:
    """Add the figures of all rounds together to `extra_info`. Fails if a request did."""
    errors = [figures.errors for figures in rounds if figures.errors]
    assert not errors, errors
    times = {
        name: [value for figures in rounds for value in getattr(figures, name)] for name in ("ttft", "tpot", "gaps")
    }
    benchmark.extra_info |= {
        f"{prefix}tokens_per_second": median(figures.output_rate for figures in rounds),
        f"{prefix}ttft_p50_ms": 1000 * percentile(times["ttft"], 50),
        f"{prefix}ttft_p99_ms": 1000 * percentile(times["ttft"], 99),
        f"{prefix}tpot_p50_ms": 1000 * percentile(times["tpot"], 50),
        f"{prefix}gap_p99_ms": 1000 * percentile(times["gaps"], 99),
        f"{prefix}input_tokens": rounds[0].mean_input,
        f"{prefix}output_tokens": rounds[0].mean_output,
        f"{prefix}cached_share": rounds[-1].cached_share,
    }


@pytest.fixture(scope="module")
def url(llm: LLM, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server of the same model as `llm`, in a process of its own."""
    flags = {"device": llm.device.type, "dtype": dtype_name(llm.dtype), "quant": llm.quant}
    folder = checkpoint(request.config.getoption("--bench-model"))
    with started(bareloop_command(folder, *(f"--{name}={value}" for name, value in flags.items()))) as address:
        yield address


@pytest.mark.benchmark(group="requests over HTTP")
@pytest.mark.parametrize("clients", ["short", *CLIENTS])
def test_served(benchmark: Any, llm: LLM, url: str, clients: int | str, full: bool) -> None:
    """Requests over HTTP; but for the short case beside the same ones on the scheduler alone, in turns."""
    if isinstance(clients, int) and not full:
        pytest.skip("256 + 128 tokens: --bench-full")
    size = SHORT if isinstance(clients, str) else Size(clients, INPUT, OUTPUT)
    numbers = itertools.count()
    served: list[Figures] = []
    alone: list[Alone] = []
    loaded(url, size._replace(output_tokens=2), numbers)  # warms up
    benchmark.pedantic(
        lambda: served.append(loaded(url, size, numbers)),
        setup=lambda: None if size is SHORT else alone.append(scheduled(llm, size, numbers)),
        rounds=1 if size is SHORT else ROUNDS,
    )
    add(benchmark, "", served)
    benchmark.extra_info |= {"threads": torch.get_num_threads(), "commit": commit()}
    if alone:
        pairs = list(zip(served, alone, strict=True))
        benchmark.extra_info |= {
            "alone_tokens_per_second": median(run.output_rate for run in alone),
            "alone_ttft_p50_ms": 1000 * percentile([seconds for run in alone for seconds in run.ttft], 50),
            "share_of_alone": median(over.output_rate / run.output_rate for over, run in pairs),
        }


@pytest.fixture(scope="module")
def smollm2_file() -> Path:
    """SmolLM2's GGUF file."""
    if embedded.default_model() != embedded.SMOLLM2:
        pytest.skip("SmolLM2 is not installed: make smollm2")
    return gguf_files(find_model(embedded.SMOLLM2))[0]


@pytest.mark.benchmark(group="SmolLM2's GGUF file, beside llama.cpp's server")
@pytest.mark.parametrize("clients", CLIENTS)
def test_beside_llama_server(benchmark: Any, smollm2_file: Path, clients: int, full: bool) -> None:
    """The same file served by bareloop and by llama.cpp, in turns."""
    if not full:
        pytest.skip("two servers: --bench-full")
    if shutil.which(LLAMA_SERVER) is None:
        pytest.skip(f"{LLAMA_SERVER} is not in the PATH")
    size = Size(clients, INPUT, OUTPUT)
    ours: list[Figures] = []
    theirs: list[Figures] = []
    with ExitStack() as stack:
        llama = llama_command(smollm2_file, clients, 2 * (INPUT + OUTPUT), torch.get_num_threads())
        our_url, their_url = (
            stack.enter_context(started(command)) for command in (bareloop_command(smollm2_file), llama)
        )
        our_numbers, their_numbers = itertools.count(), itertools.count()
        for url, numbers in ((our_url, our_numbers), (their_url, their_numbers)):
            loaded(url, size._replace(output_tokens=2), numbers)  # warms up
        benchmark.pedantic(
            lambda: ours.append(loaded(our_url, size, our_numbers)),
            setup=lambda: theirs.append(loaded(their_url, size, their_numbers)),
            rounds=ROUNDS,
        )
    add(benchmark, "", ours)
    add(benchmark, "llama_", theirs)
    pairs = list(zip(ours, theirs, strict=True))
    benchmark.extra_info |= {
        "ratio_tokens_per_second": median(our.output_rate / their.output_rate for our, their in pairs),
        "ratio_ttft_p50": median(percentile(their.ttft, 50) / percentile(our.ttft, 50) for our, their in pairs),
        "threads": torch.get_num_threads(),
        "commit": commit(),
    }
