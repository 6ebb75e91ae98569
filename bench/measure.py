"""One measured figure beside what the machine could do in the same minute."""

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

MATRIX = 2048  # rows and columns of the product that stands for the most that can be computed
EVERY = 8  # rounds between two looks at the limits


@dataclass
class Limits:
    """How fast memory is read and matrices are multiplied here; measured often, because other work comes and goes."""

    device: torch.device
    dtype: torch.dtype
    bandwidths: list[float] = field(default_factory=list)  # bytes a second
    products: list[float] = field(default_factory=list)  # operations a second

    def look(self) -> None:
        """Measure both now."""
        self.bandwidths.append(read_bandwidth(self.device))
        a = torch.ones(MATRIX, MATRIX, device=self.device, dtype=self.dtype)
        torch.mm(a, a)
        synchronize(self.device)
        start = time.perf_counter()
        torch.mm(a, a)
        synchronize(self.device)
        self.products.append(2 * MATRIX**3 / (time.perf_counter() - start))

    def forget(self) -> None:
        """Begin anew."""
        self.bandwidths.clear()
        self.products.clear()


@dataclass(frozen=True)
class Work:
    """What one round does."""

    tokens: int
    nbytes: int  # read from memory
    flops: int


def past_bytes(costs: Sequence[Cost]) -> int:
    """What a token reads of what its own row remembers: what is neither a weight nor a head that shares one."""
    return sum(cost.nbytes for cost in costs if cost.parameters == 0 and "head" not in cost.part)


def decoding(llm: LLM, context: int, rows: int) -> Work:
    """A token for each of some rows: the weights are read once, every row's keys and values by itself."""
    costs = list(llm.model.costs(context))
    return Work(rows, sum(c.nbytes for c in costs) + (rows - 1) * past_bytes(costs), rows * sum(c.flops for c in costs))


def prefilling(llm: LLM, tokens: int, after: int = 0) -> Work:
    """So many tokens `after` others: the weights are read once, and only the last token asks for the head."""
    costs = list(llm.model.costs(after + tokens // 2))
    head = sum(cost.flops for cost in costs if "head" in cost.part)
    each = sum(cost.flops for cost in costs) - head
    return Work(tokens, sum(c.nbytes for c in costs), tokens * each + head)


def timed(benchmark: Any, limits: Limits, llm: LLM, run: Callable[[], Any], work: Work, rounds: int) -> None:
    """Rounds of `run` after one that warms up, the device waited for within; all figures go to `extra_info`."""
    limits.forget()
    number = 0

    def setup() -> None:
        nonlocal number
        if number % EVERY == 0:
            limits.look()
        number += 1

    def waited() -> None:
        run()
        synchronize(llm.device)

    benchmark.pedantic(waited, setup=setup, rounds=rounds, warmup_rounds=1)
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
        "kernels": kernels.state(llm.dtype) if llm.device.type == "cpu" else "",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
    }


def how(form: str) -> dict[str, Any]:
    """A dtype, or a weight format (of a bfloat16 model), as `LLM.load` takes them."""
    return {"dtype": form} if form in ("bfloat16", "float32", "float16") else {"dtype": "bfloat16", "quant": form}


@cache
def commit() -> str:
    """Of the project; empty where it is installed without its history."""
    folder = Path(__file__).parents[1]
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], check=False, cwd=folder, capture_output=True, text=True
    )
    return asked.stdout.strip()
