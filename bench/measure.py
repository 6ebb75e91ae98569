"""Benchmarks with the hardware's limits, measured in the same minutes, beside each figure."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from engine import LLM, kernels
from engine.models.family import Cost
from engine.runtime.clocks import read_bandwidth
from engine.runtime.device import dtype_name, synchronize

MATRIX = 2048  # size of the matrix product that measures the compute limit
LIMITS_INTERVAL = 8  # rounds between two measurements of the limits


@dataclass
class Limits:
    """Memory bandwidth and matrix product rate of the device, measured repeatedly, as its load varies."""

    device: torch.device
    dtype: torch.dtype
    bandwidths: list[float] = field(default_factory=list)  # bytes per second
    products: list[float] = field(default_factory=list)  # FLOPs per second

    def measure(self) -> None:
        """Measure both now."""
        self.bandwidths.append(read_bandwidth(self.device))
        a = torch.ones(MATRIX, MATRIX, device=self.device, dtype=self.dtype)
        torch.mm(a, a)
        synchronize(self.device)
        start = time.perf_counter()
        torch.mm(a, a)
        synchronize(self.device)
        self.products.append(2 * MATRIX**3 / (time.perf_counter() - start))

    def reset(self) -> None:
        """Discard all measurements."""
        self.bandwidths.clear()
        self.products.clear()


@dataclass(frozen=True)
class Work:
    """The work of one round."""

    tokens: int
    nbytes: int  # read from memory
    flops: int


def past_bytes(costs: Sequence[Cost]) -> int:
    """Bytes of its own row's cache that a token reads: the costs that are neither weights nor a tied head."""
    return sum(cost.nbytes for cost in costs if cost.parameters == 0 and "head" not in cost.part)


def decoding(llm: LLM, context: int, rows: int) -> Work:
    """Decode one token per row: the weights are read once, the keys and values of every row."""
    costs = list(llm.model.costs(context))
    return Work(rows, sum(c.nbytes for c in costs) + (rows - 1) * past_bytes(costs), rows * sum(c.flops for c in costs))


def prefilling(llm: LLM, tokens: int, after: int = 0) -> Work:
    """Prefill `tokens` after `after` others: the weights are read once, the head is used for the last token only."""
    costs = list(llm.model.costs(after + tokens // 2))
    head = sum(cost.flops for cost in costs if "head" in cost.part)
    each = sum(cost.flops for cost in costs) - head
    return Work(tokens, sum(c.nbytes for c in costs), tokens * each + head)


def timed(benchmark: Any, limits: Limits, llm: LLM, run: Callable[[], Any], work: Work, rounds: int) -> None:
    """Time rounds of `run`, after a warm-up round, with the device synchronized; all figures go to `extra_info`."""
    limits.reset()
    number = 0

    def setup() -> None:
        nonlocal number
        if number % LIMITS_INTERVAL == 0:
            limits.measure()
        number += 1

    def run_and_wait() -> None:
        run()
        synchronize(llm.device)

    benchmark.pedantic(run_and_wait, setup=setup, rounds=rounds, warmup_rounds=1)
    seconds = benchmark.stats.stats.data
    middle = median(seconds)
    bandwidth, product = median(limits.bandwidths), median(limits.products)
    benchmark.extra_info |= {
        "tokens_per_second": work.tokens / middle,
        "bytes_per_token": work.nbytes / work.tokens,
        "gigabytes_per_second": work.nbytes / middle / 1e9,
        "percent_of_bandwidth": 100 * work.nbytes / middle / bandwidth,
        "flops_per_second": work.flops / middle,
        "percent_of_gemm": 100 * work.flops / middle / product,
        "flops_per_byte": work.flops / work.nbytes,
        "read_bandwidth": bandwidth,
        "gemm_flops_per_second": product,
        "latency_p50": middle,
        "latency_p99": quantiles(seconds, n=100, method="inclusive")[98] if len(seconds) > 1 else middle,
        "device": llm.device.type,
        "dtype": dtype_name(llm.dtype),
        "format": dtype_name(llm.dtype) if llm.quant == "none" else llm.quant,
        "kernels": kernels.describe(llm.dtype) if llm.device.type == "cpu" else "",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
    }


def load_options(weight_format: str) -> dict[str, Any]:
    """Keyword arguments of `LLM.load` for a dtype, or for a weight format (of a bfloat16 model)."""
    return (
        {"dtype": weight_format, "quant": "none"}
        if weight_format in ("bfloat16", "float32", "float16")
        else {"dtype": "bfloat16", "quant": weight_format}
    )


@cache
def commit() -> str:
    """The commit of the project; empty if it is installed without its history."""
    folder = Path(__file__).parents[1]
    process = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], check=False, cwd=folder, capture_output=True, text=True
    )
    return process.stdout.strip()
