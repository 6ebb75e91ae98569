"""How long work on a device takes, for `bench.gpu_check`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import torch

from engine.decoding.capture import record
from engine.runtime.device import synchronize

ENOUGH = 3.0  # seconds of rounds, after which no other one begins
GRAPH_SECONDS, MAX_PASSES = 0.004, 64  # of a graph: so long that the gap between two of them does not count
REPLAY_SECONDS = 0.01  # of the replays that are timed together


class SkippedError(Exception):
    """This machine, or this shape, cannot have a part; the message says why."""


def timed(device: torch.device, work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of `work` and its duration in seconds."""
    start = time.perf_counter()
    result = work()
    synchronize(device)
    return result, time.perf_counter() - start


def best_of(rounds: int, device: torch.device, work: Callable[[], Any]) -> float:
    """Return the shortest duration in seconds of several rounds, fewer on a slow device, after one that warms up."""
    start = time.perf_counter()
    work()
    synchronize(device)
    best = float("inf")
    for _ in range(rounds):
        best = min(best, timed(device, work)[1])
        if time.perf_counter() - start > ENOUGH:
            break
    return best


def seconds_of_each(calls: Sequence[Callable[[], Any]], device: torch.device) -> float:
    """Seconds of one of these calls, made in turn. On a GPU they are in a CUDA graph, so launching takes no time."""

    def work(passes: int = 1) -> Any:
        for _ in range(passes):
            for call in calls:
                result = call()
        return result

    with torch.inference_mode():
        work()  # kernels are compiled
        eager = timed(device, work)[1]
        if device.type != "cuda":
            return eager / len(calls)
        passes = min(max(1, ceil(GRAPH_SECONDS / eager)), MAX_PASSES)
        replay, _ = record(lambda: work(passes), device)
        repeats = ceil(REPLAY_SECONDS / max(_replays(replay, 1, device), 1e-6))
        best = min(_replays(replay, repeats, device) for _ in range(3))
    return best / (repeats * passes * len(calls))


def _replays(replay: Callable[[], None], repeats: int, device: torch.device) -> float:
    """Seconds of so many replays."""
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(repeats):
            replay()
        end.record()
        end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def seconds_to_launch(call: Callable[[], Any], device: torch.device, launches: int = 200) -> float:
    """Seconds of the host for one of many launches that wait for nothing."""
    with torch.inference_mode():
        for _ in range(launches):  # warm up
            call()
        synchronize(device)
        start = time.perf_counter()
        for _ in range(launches):
            call()
        seconds = time.perf_counter() - start
        synchronize(device)
    return seconds / launches
