"""The parts of `bench.gpu_check`: the machine, the tests and the comparison with the CPU; and those of other files.

A part takes a device and a shape, and yields figures as it goes. Tests and families run in processes of their own,
several at a time, as most of their time goes into compiling kernels.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.gpu.correctness import FAMILIES
from bench.gpu.kernels import attention, products
from bench.gpu.models import bfloat16, int4, int8, scoring, transformers
from bench.gpu.processes import ROOT, describe_failure, read_figures, run_together
from bench.gpu.timing import SkippedError, best_of, seconds_of_each, seconds_to_launch
from engine.kernels import gpu
from engine.runtime.clocks import read_bandwidth
from engine.runtime.device import choose_device, synchronize
from engine.runtime.errors import BareloopError
from engine.runtime.memory import free_memory

PROCESSES, PROCESS_BYTES = 10, 1e9  # at a time; GPU memory of one
SHARDS = {
    "test_dense.py": 4,
    "test_llm.py": 4,
    "test_norms.py": 3,
    "test_panels.py": 3,
    "test_scoring.py": 3,
}  # files that compile a hundred kernels, and their processes
GRAPH_KERNELS = 100
TEST_MARKS = "mark.cuda", "gpu_device"  # what files with tests that need a GPU contain


def machine(device: str, shape: str) -> Iterator[dict[str, Any]]:  # noqa: ARG001
    """The card, the versions, the rates of memory and matrix products, and what it costs to launch a kernel."""
    target = choose_device(device)
    figures: dict[str, Any] = {"torch": torch.__version__}
    for package in ("triton", "transformers"):
        try:
            figures[package] = __import__(package).__version__
        except ImportError:
            figures[package] = "not installed"
    if target.type == "cuda":
        properties = torch.cuda.get_device_properties(target)
        figures |= {
            "card": properties.name,
            "compute capability": f"{properties.major}.{properties.minor}",
            "CUDA": torch.version.cuda,
            "memory, GB": properties.total_memory / 1e9,
            "free memory, GB": (free_memory(target) or 0) / 1e9,
            "L2 cache, MB": properties.L2_cache_size / 1e6,
            "multiprocessors": properties.multi_processor_count,
        }
    yield {**figures, "processors": os.cpu_count()}
    yield {"read bandwidth, GB/s": read_bandwidth(target) / 1e9}
    size = 8192 if target.type == "cuda" else 256
    a = torch.randn(size, size, device=target, dtype=torch.bfloat16)
    yield {"bfloat16 product, TFLOP/s": 2 * size**3 / best_of(5, target, lambda: a @ a) / 1e12}
    ops, one, x = gpu.for_device(target), torch.zeros(1, device=target), torch.zeros(1, 64, device=target)

    def wait_for_one() -> None:
        one.add_(1)
        synchronize(target)

    if ops is None and target.type == "cuda":
        raise BareloopError("Triton's kernels do not work here: they need a C compiler and Python's headers")
    yield {
        "Triton's kernels": "none" if ops is None else "work",
        "launch of a PyTorch kernel, µs": 1e6 * seconds_to_launch(lambda: one.add_(1), target),
        "launch and wait, µs": 1e6 * seconds_to_launch(wait_for_one, target),
        f"kernel in a graph of {GRAPH_KERNELS}, µs": 1e6
        * seconds_of_each([lambda: one.add_(1)] * GRAPH_KERNELS, target),
    }
    if ops is not None:
        launch = seconds_to_launch(lambda: ops.gated_activation(x, "silu"), target)
        yield {"launch of a Triton kernel, µs": 1e6 * launch}


def tests(device: str, shape: str) -> Iterator[dict[str, Any]]:  # noqa: ARG001
    """The tests that need a GPU. Raises `BareloopError` with the files that failed."""
    if choose_device(device).type != "cuda":
        raise SkippedError("needs CUDA")
    commands = pytest_commands("cuda")
    failed = []
    for name, status, output in run_together(commands, processes(device)):
        yield {name: output[-1].strip("= ") if output else f"exit status {status}"}
        if status not in (0, 5):  # 5: there are none
            failed.append(name)
            print("", f"{name}: {describe_failure(status, output)}", *output[-60:], sep="\n", flush=True)
    if failed:
        raise BareloopError(f"{len(failed)} of {len(commands)} files failed: {', '.join(failed)}")


def pytest_commands(mark: str) -> dict[str, list[str]]:
    """The command lines of the tests with a mark in files with GPU tests, those that take the longest first."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-rf", "-m", mark, "-p", "no:cacheprovider", "--tb=short"]
    pytest += ["-o", "addopts=--import-mode=importlib", "-p", "bench.gpu.shard"]
    commands = {}
    for path in sorted(gpu_test_files(), key=lambda path: -SHARDS.get(path.name, 1)):
        shards, name = SHARDS.get(path.name, 1), str(path.relative_to(ROOT / "tests"))
        for shard in range(shards):
            suffix = f", {1 + shard} of {shards}" * (shards > 1)
            commands[name + suffix] = [*pytest, "--shard", f"{shard}/{shards}", str(path)]
    return commands


def gpu_test_files() -> list[Path]:
    """The files with tests that need a GPU, whose imports a bare image has."""
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path for path in paths if any(mark in path.read_text() for mark in TEST_MARKS)]


def correctness(device: str, shape: str) -> Iterator[dict[str, Any]]:  # noqa: ARG001
    """Random models of ten families on the device and on the CPU. Raises `BareloopError` with those that differ."""
    program = [sys.executable, "-m", "bench.gpu.correctness", "--device", device]
    failed = []
    for family, status, output in run_together({name: [*program, name] for name in FAMILIES}, processes(device)):
        figures, rest = read_figures(output)
        failures = figures.pop("failures", [describe_failure(status, output)])
        yield {family: {**figures, **({"failures": len(failures)} if failures else {})}}
        for line in (*rest[-20:], *failures):
            print(f"{family}: {line}", flush=True)
        failed += [family] if failures else []
    if failed:
        raise BareloopError(f"{len(failed)} of {len(FAMILIES)} families differ: {', '.join(failed)}")


def processes(device: str) -> int:
    """How many processes at a time the processors and the memory of the device allow."""
    target = choose_device(device)
    free = free_memory(target) if target.type == "cuda" else None
    by_memory = PROCESSES if free is None else int(free / PROCESS_BYTES)
    return max(1, min(PROCESSES, 2 * (os.cpu_count() or 1) // 3, by_memory))


PARTS: dict[str, Callable[[str, str], Iterator[dict[str, Any]]]] = {
    "machine": machine,
    "tests": tests,
    "correctness": correctness,
    "bfloat16": bfloat16,
    "int8": int8,
    "int4": int4,
    "scoring": scoring,
    "products": products,
    "attention": attention,
    "transformers": transformers,
}
