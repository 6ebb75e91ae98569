"""The parts of `bench.gpu_check` that measure a whole model: prompts, decoding, scoring, and transformers.

Everything goes through `LLM.scheduler()` and `LLM.score`, so the figures are what a caller gets. Each part yields its
figures as it goes, so that those before a failure are kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.gpu.random_models import random_ids, random_llm, without_graphs
from bench.gpu.report import MMLU
from bench.gpu.timing import ENOUGH, best_of, timed
from bench.measure import decoding
from bench.shapes import SHAPES
from engine import LLM, SamplingParams
from engine.decoding.scheduling.request import Request
from engine.decoding.scheduling.scheduler import Scheduler
from engine.layers.linear import Linear
from engine.runtime.clocks import read_bandwidth
from engine.runtime.device import choose_device, synchronize
from engine.runtime.memory import peak_memory

Figures = Iterator[dict[str, Any]]

PROMPTS, TTFT_PROMPT, TRIAL_PROMPTS = (512, 2048, 8192), 2000, (16, 40)  # tokens; trials are on a CPU
ROWS, OTHER_ROWS, TRIAL_ROWS = (1, 16), (8, 32), (1, 2)  # that decode together
CONTEXT = 128  # tokens of the prompts of decoding
WARM_UP, STEPS, WINDOWS, TRIAL_STEPS, PROFILED = 8, 32, 3, 2, 8  # steps: before, in each window; windows; steps
KERNELS = 10  # of a profile: those that take the most time
GREEDY = SamplingParams(ignore_eos=True)
SAMPLED = SamplingParams(ignore_eos=True, temperature=0.8, top_p=0.95, seed=0)
PRODUCT_ROWS, PRODUCT_ERROR = (1, 8, 16, 32, 64), 0.02  # relative to the largest number of a product

GROUPS, GROUP_QUESTIONS, SHOTS_TOKENS, QUESTION_TOKENS, CHOICES = 4, 256, 700, 90, 4  # of scoring: 5-shot MMLU's
MMLU_QUESTIONS, MMLU_GROUPS = 14_042, 57


def bfloat16(device: str, shape: str) -> Figures:
    """The shape in bfloat16: prompts; decoding with and without CUDA graphs, greedy and sampled; its kernels."""
    llm, seconds = timed(choose_device(device), lambda: random_llm(shape, device))
    bandwidth = read_bandwidth(llm.device)
    yield {"creation, s": seconds, "weights, GB": weights_bytes(llm) / 1e9, "read bandwidth, GB/s": bandwidth / 1e9}
    for rows in rows_of(llm):
        yield decode(llm, rows, bandwidth)
    yield from prompts(llm)
    eager = without_graphs(llm)
    for rows in rows_of(llm):
        yield decode(llm, rows, bandwidth, SAMPLED, ", top-p")
        yield decode(eager, rows, bandwidth, GREEDY, ", without graphs")
    for rows in OTHER_ROWS if llm.device.type == "cuda" else ():
        yield decode(llm, rows, bandwidth)
        yield decode(eager, rows, bandwidth, GREEDY, ", without graphs")
    for rows in rows_of(llm):
        yield profile(llm, rows)


def int8(device: str, shape: str) -> Figures:
    """The same in int8."""
    return quantized(device, shape, "int8")


def int4(device: str, shape: str) -> Figures:
    """The same in int4."""
    return quantized(device, shape, "int4")


def quantized(device: str, shape: str, quant: str) -> Figures:
    """Decoding, prompts, and the errors of products against the dequantized weights in float64."""
    llm, seconds = timed(choose_device(device), lambda: random_llm(shape, device, quant))
    bandwidth = read_bandwidth(llm.device)
    yield {"creation, s": seconds, "weights, GB": weights_bytes(llm) / 1e9, "read bandwidth, GB/s": bandwidth / 1e9}
    errors = {f"{rows} rows": product_error(llm, rows) for rows in PRODUCT_ROWS}
    yield {"error of a product, relative": errors}
    for rows in rows_of(llm):
        yield decode(llm, rows, bandwidth)
    yield from prompts(llm, PROMPTS[:2])
    yield profile(llm, 1)
    assert max(errors.values()) <= PRODUCT_ERROR, f"products differ by {max(errors.values()):.1e} of the largest number"


def rows_of(llm: LLM) -> tuple[int, ...]:
    """Numbers of rows that decode together."""
    return ROWS if llm.device.type == "cuda" else TRIAL_ROWS


def weights_bytes(llm: LLM) -> int:
    """Bytes of all parameters."""
    return sum(parameter.nbytes for parameter in llm.model.parameters())


@torch.inference_mode()
def product_error(llm: LLM, rows: int) -> float:
    """The largest error of a product with the first quantized matrix, relative to the largest number of the product."""
    modules = (module for module in llm.model.modules() if isinstance(module, Linear))
    matrix, weight_format = next((module, module.format) for module in modules if module.format is not None)
    assert weight_format is not None
    dense = weight_format.dense(matrix._parameters, 0, matrix.rows, torch.float32).double()
    x = torch.randn(rows, matrix.columns, device=llm.device, dtype=llm.dtype)
    expected = x.double() @ dense.T
    if matrix.bias is not None:
        expected += matrix.bias.double()
    return float((matrix(x).double() - expected).abs().max() / expected.abs().max())


def prompts(llm: LLM, lengths: Sequence[int] = PROMPTS) -> Figures:
    """Prompts of several lengths, each alone, from their submission to the first token of the reply."""
    for tokens in lengths if llm.device.type == "cuda" else TRIAL_PROMPTS:
        if tokens < llm.max_length:
            yield {f"prefill {tokens}, tokens/s": tokens / first_token_seconds(llm, tokens)}
    tokens = TTFT_PROMPT if llm.device.type == "cuda" else TRIAL_PROMPTS[-1]
    yield {f"time to the first token, prompt of {tokens}, ms": 1000 * first_token_seconds(llm, tokens)}


def first_token_seconds(llm: LLM, tokens: int) -> float:
    """The shortest of several times to the first token, each of a prompt of its own; the first prompt warms up."""
    start, seconds = time.perf_counter(), []
    with llm.scheduler() as scheduler:
        for seed in range(4):
            ids = random_ids(llm.config.vocab_size, tokens, 1000 + seed)
            request = scheduler.submit(ids, replace(GREEDY, max_new_tokens=1))
            list(request)  # raises its error
            seconds.append(request.first_token - request.submitted)
            if len(seconds) > 1 and time.perf_counter() - start > ENOUGH:
                break
    return min(seconds[1:])


def decode(llm: LLM, rows: int, bandwidth: float, params: SamplingParams = GREEDY, kind: str = "") -> dict[str, float]:
    """Decoding of so many rows together: tokens per second, and the rate at which weights, keys and values are read."""
    seconds, context = step_seconds(llm, rows, params)
    rate = decoding(llm, context, rows).nbytes / seconds
    name = f"decode {rows}{kind}"
    return {
        f"{name}, tokens/s": rows / seconds,
        f"{name}, GB/s": rate / 1e9,
        f"{name}, share of the read bandwidth": rate / bandwidth,
    }


def step_seconds(llm: LLM, rows: int, params: SamplingParams) -> tuple[float, int]:
    """Seconds in which each row gets a token, in the fastest of some windows, and the context in tokens there."""
    start, best, context = time.perf_counter(), float("inf"), CONTEXT
    steps = STEPS if llm.device.type == "cuda" else TRIAL_STEPS
    with decoding_requests(llm, rows, params, WINDOWS * steps) as (scheduler, requests):
        for _ in range(WINDOWS):
            before, begin = tokens_of(requests), time.perf_counter()
            advance(scheduler, requests, steps)
            after, end = tokens_of(requests), time.perf_counter()
            seconds = (end - begin) * rows / max(1, after - before)
            if seconds < best:
                best, context = seconds, CONTEXT + (before + after) // (2 * rows)
            if end - start > ENOUGH:
                break
    return best, context


@contextmanager
def decoding_requests(
    llm: LLM, rows: int, params: SamplingParams, steps: int
) -> Iterator[tuple[Scheduler, list[Request]]]:
    """A scheduler and its requests, which all decode, and can go on for so many steps, after those that warm up."""
    params = replace(params, max_new_tokens=2 * rows + WARM_UP + steps + 64)  # the first ones decode amid later prompts
    with llm.scheduler() as scheduler:
        ids = [random_ids(llm.config.vocab_size, CONTEXT, seed) for seed in range(rows)]
        requests = [scheduler.submit(each, params) for each in ids]
        while not all(request.first_token for request in requests):
            advance(scheduler, requests, 1)
        advance(scheduler, requests, WARM_UP)
        yield scheduler, requests


def advance(scheduler: Scheduler, requests: Sequence[Request], steps: int) -> None:
    """Compute so many steps, and wait for their end. Raises the error of a request that failed."""
    for _ in range(steps):
        scheduler.step()
    synchronize(scheduler.state.device)
    for request in requests:
        if request.error is not None:
            raise request.error
        assert not request.is_finished, f"a request has ended too early: {request.finish_reason}"


def tokens_of(requests: Sequence[Request]) -> int:
    """The tokens that all requests have generated."""
    return sum(request.completion_tokens for request in requests)


def profile(llm: LLM, rows: int) -> dict[str, Any]:
    """Microseconds of the device and of the host alone per step, the number of kernels, and the largest of them."""
    name = f"step of {rows} rows"
    if llm.device.type != "cuda":
        return {name: "needs CUDA"}
    seconds, _ = step_seconds(llm, rows, GREEDY)
    try:
        with decoding_requests(llm, rows, GREEDY, 2 * PROFILED) as (scheduler, requests):
            activities = [torch.profiler.ProfilerActivity.CUDA]
            with torch.profiler.profile(activities=activities) as profiler:
                advance(scheduler, requests, PROFILED)
        events = [event for event in profiler.key_averages() if event.device_type.name == "CUDA"]
        times = {event.key: event.self_device_time_total / PROFILED for event in events}
        count = sum(event.count for event in events) / PROFILED
    except Exception as error:  # CUPTI is not allowed everywhere
        return {name: f"no profile: {str(error).partition(chr(10))[0]}"}
    largest = sorted(times, key=lambda key: -times[key])[:KERNELS]
    return {
        f"{name}, µs": 1e6 * seconds,
        f"{name}, device, µs": sum(times.values()),
        f"{name}, host alone, µs": 1e6 * seconds - sum(times.values()),
        f"{name}, kernels": count,
        f"{name}, largest, µs": {key[:60]: times[key] for key in largest},
    }


def scoring(device: str, shape: str) -> Figures:
    """5-shot MMLU as evals/ does it: groups of questions with a prefix, and four continuations of one token each."""
    llm = random_llm(shape, device)
    vocabulary, number = llm.config.vocab_size, GROUP_QUESTIONS if llm.device.type == "cuda" else 4
    requests = []
    for group in range(GROUPS):
        shots = random_ids(vocabulary, SHOTS_TOKENS if llm.device.type == "cuda" else 40, 10_000 + group)
        for question in range(number):
            context = [*shots, *random_ids(vocabulary, QUESTION_TOKENS, group * number + question)]
            requests += [(context, [choice]) for choice in range(5, 5 + CHOICES)]
    seconds = best_of(2, llm.device, lambda: llm.score(requests))
    questions = GROUPS * number
    share = min(questions / MMLU_QUESTIONS, GROUPS / MMLU_GROUPS)  # of MMLU, in questions or in prefixes
    yield {
        "5-shot questions/s": questions / seconds,
        "own tokens/s": questions * QUESTION_TOKENS / seconds,
        MMLU: seconds / share,
        "peak memory, GB": peak_memory(llm.device) / 1e9,
    }


def transformers(device: str, shape: str) -> Figures:
    """transformers with the same shape: prompts, `generate` of 1 and 16 rows, both after a pass that warms up."""
    from transformers import AutoConfig, AutoModelForCausalLM

    target = choose_device(device)
    torch.backends.cuda.enable_cudnn_sdp(True)  # torch's default, which `choose_device` changes
    config = {key: value for key, value in SHAPES[shape].items() if key not in ("model_type", "architectures")}
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with target:
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(SHAPES[shape]["model_type"], **config)).eval()
    finally:
        torch.set_default_dtype(dtype)
    vocabulary, is_trial = model.config.vocab_size, target.type != "cuda"

    @torch.inference_mode()
    def generate(rows: int, new: int) -> None:
        ids = torch.tensor([random_ids(vocabulary, CONTEXT)] * rows, device=target)
        model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)

    @torch.inference_mode()
    def prefill(ids: Tensor) -> None:
        model(ids, logits_to_keep=1)

    for rows in TRIAL_ROWS if is_trial else ROWS:
        new = TRIAL_STEPS if is_trial else STEPS
        short, long = (best_of(1, target, lambda count=count: generate(rows, count)) for count in (4, 4 + new))  # type: ignore[misc]  # noqa: B023
        yield {f"decode {rows}, tokens/s": rows * new / (long - short)}
    for tokens in TRIAL_PROMPTS if is_trial else PROMPTS[:2]:
        ids = torch.tensor([random_ids(vocabulary, tokens)], device=target)
        yield {f"prefill {tokens}, tokens/s": tokens / best_of(3, target, lambda ids=ids: prefill(ids))}  # type: ignore[misc]
    yield {"peak memory, GB": peak_memory(target) / 1e9}
