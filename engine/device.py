"""Where to compute and in which dtype, and what it took: real, CPU and GPU seconds, and memory."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from engine.config import DTYPES
from engine.cycles import CycleCounter
from engine.errors import BareloopError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MADV_HUGEPAGE, LARGE_PAGE = 14, 2**21  # sys/mman.h; bytes
KEPT = 2**30  # bytes: blocks up to this size come from the heap, and this much of it stays when free
OLDER_LIMIT = 2**25  # the largest block that glibc takes there before 2.35


def choose_device(name: str = "auto") -> torch.device:
    """`auto` (CUDA, else Apple's GPU, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BareloopError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= (device.index or 0):
            have = f"this machine has {count} CUDA device(s)" if count else "no CUDA device is available here"
            raise BareloopError(f"device {name}: {have}; use --device cpu or auto")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise BareloopError("device mps: Apple's GPU is not available here; use --device cpu or auto")
    elif device.type not in ("cpu", "mps"):
        raise BareloopError(f"device {name} is not supported; use auto, cpu, cuda, cuda:N or mps")
    return device


def choose_dtype(name: str, stored: str) -> torch.dtype:
    """`auto` is the dtype that the checkpoint is stored in."""
    name = stored if name == "auto" else name
    if name not in DTYPES:
        raise BareloopError(f"unknown dtype {name!r}; use auto, {', '.join(DTYPES)}")
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> bfloat16, as flags and config.json spell it."""
    return str(dtype).removeprefix("torch.")


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated there; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = _told_by("/proc/meminfo", "MemAvailable")
    left = _left_to_group()
    return min(free, left) if free is not None and left is not None else free


def _told_by(path: str, name: str) -> int | None:
    """Bytes, as Linux tells them in a file of lines such as "VmHWM: 1234 kB"; None where there is no such line."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def _left_to_group() -> int | None:
    """Bytes that a container may still take; None where there is no limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        stats = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return None if limit == "max" else int(limit) - int(used) + int(stats.get("inactive_file", 0))
    except (OSError, ValueError):
        return None


@cache
def keep_freed_memory() -> None:
    """Let the C library keep what it is given back: a forward's tensors then take the pages of the last one's.

    glibc returns large blocks to the system by default, and every page that is fetched anew costs a fault and
    4 KiB of zeros: 10 to 20 % of a prefill. Elsewhere, or where this has no effect, nothing happens.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            if mallopt(M_MMAP_THRESHOLD, KEPT) or mallopt(M_MMAP_THRESHOLD, OLDER_LIMIT):
                mallopt(M_TRIM_THRESHOLD, KEPT)


def synchronize(device: torch.device) -> None:
    """Wait until what was started there is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def use_large_pages(tensor: torch.Tensor) -> torch.Tensor:
    """Ask for pages of 2 MiB for memory that has not been written to; the tensor itself is returned.

    A pass over all weights then looks up few addresses: 3 to 9 % of a token's time on a CPU. Elsewhere, and where
    the system has no such pages, nothing happens.
    """
    first = -(-tensor.data_ptr() // LARGE_PAGE) * LARGE_PAGE
    size = (tensor.data_ptr() + tensor.nbytes) // LARGE_PAGE * LARGE_PAGE - first
    if sys.platform == "linux" and tensor.device.type == "cpu" and size > 0:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), MADV_HUGEPAGE)
    return tensor


def read_bandwidth(device: torch.device) -> float:
    """Bytes a second at which memory is read there, measured now: the limit of a token that reads all weights once."""
    numbers = use_large_pages(torch.empty(2**26, device=device)).fill_(1)  # 256 MiB, beyond any cache
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        numbers.sum().item()
        best = min(best, time.perf_counter() - start)
    return numbers.nbytes / best


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak so far, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """The most bytes held so far: on a GPU by tensors there, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = _told_by("/proc/self/status", "VmHWM")  # Linux; its ru_maxrss is inherited from who started us
    if most is not None:
        return most
    try:
        import resource
    except ImportError:  # not on this system
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@dataclass(frozen=True)
class Spent:
    """What some work took: seconds by the clock, of all CPU threads, and of the GPU's stream; cycles of the CPU.

    The last two are None where there is no GPU, or the system does not count.
    """

    real: float
    cpu: float
    gpu: float | None
    cycles: int | None


class Stopwatch:
    """Measures work in laps; on a GPU a lap waits until what was started there is done."""

    def __init__(self, device: torch.device, counter: CycleCounter | None = None) -> None:
        self.device = device
        self.counter = counter
        self._last = self._now()

    def lap(self) -> Spent:
        """What was spent since the last one, or since the start."""
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
