"""Memory of a device: how much is free, how much was used, and pages that make it faster."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from functools import cache
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MADV_HUGEPAGE, LARGE_PAGE = 14, 2**21  # sys/mman.h; bytes
KEPT = 2**30  # bytes: blocks up to this size come from the heap, and this much of it stays when free
OLDER_LIMIT = 2**25  # the largest block that glibc takes there before 2.35


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
