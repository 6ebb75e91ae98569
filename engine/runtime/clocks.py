"""Stopwatch for real, CPU and GPU time and CPU cycles; measured memory bandwidth."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from engine.runtime.cycles import CycleCounter
from engine.runtime.memory import free_memory, use_large_pages


def read_bandwidth(device: torch.device) -> float:
    """Measure the read bandwidth of the device's memory in bytes per second, the limit of decoding."""
    is_gpu = device.type == "cuda"
    ample = is_gpu and (free_memory(device) or 0) > 2**32
    count = 2**28 if ample else 2**26  # 1 GiB or 256 MiB: a large GPU's cache has room for a fifth of that
    numbers = use_large_pages(torch.empty(count, device=device)).fill_(1)
    passes = 16 if is_gpu else 1  # queued together, as launching and waiting take as long as reading 100 MB
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        for _ in range(passes):
            total = numbers.sum()
        total.item()
        best = min(best, time.perf_counter() - start)
    return passes * numbers.nbytes / best


@dataclass(frozen=True)
class Spent:
    """The cost of some work: seconds of wall clock, of all CPU threads, and of the GPU's stream; CPU cycles.

    GPU seconds are None without a GPU, cycles None if the system does not count them.
    """

    real: float
    cpu: float
    gpu: float | None
    cycles: int | None


class Stopwatch:
    """Measures work in laps. On a GPU a lap waits for the work that was started."""

    def __init__(self, device: torch.device, counter: CycleCounter | None = None) -> None:
        self.device = device
        self.counter = counter
        self._last = self._now()

    def lap(self) -> Spent:
        """The cost since the last lap, or since the start."""
        before, now = self._last, self._now()
        self._last = now
        gpu = before[2].elapsed_time(now[2]) / 1000 if before[2] is not None and now[2] is not None else None
        cycles = now[3] - before[3] if now[3] is not None and before[3] is not None else None
        return Spent(now[0] - before[0], now[1] - before[1], gpu, cycles)

    def _now(self) -> tuple[float, float, torch.cuda.Event | None, int | None]:
        event = None
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                event.record()
            event.synchronize()
        cycles = self.counter.read() if self.counter is not None else None
        return time.perf_counter(), time.process_time(), event, cycles
