"""Memory of a device: how much is free, how much was used at most, and allocator settings that save time."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from functools import cache
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MADV_HUGEPAGE, LARGE_PAGE = 14, 2**21  # sys/mman.h; bytes
BLOCK_BYTES = 2**26  # of weights that share large pages
ALIGNMENT = 64  # bytes: a cache line
HEAP_BYTES = 2**30  # blocks up to this size come from the heap, which keeps this much when it is freed
OLD_GLIBC_LIMIT = 2**25  # the largest block that glibc before 2.35 allocates there


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on the device; None if unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by PyTorch's allocator
        return torch.cuda.mem_get_info(device)[0] + unused
    free = _read_kilobytes("/proc/meminfo", "MemAvailable")
    headroom = _container_headroom()
    return min(free, headroom) if free is not None and headroom is not None else free


def _read_kilobytes(path: str, name: str) -> int | None:
    """The value in bytes of a line such as "VmHWM: 1234 kB" in a /proc file; None if there is no such line."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def _container_headroom() -> int | None:
    """Bytes below the memory limit of the container (cgroup v2); None if there is no limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        stats = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return None if limit == "max" else int(limit) - int(used) + int(stats.get("inactive_file", 0))
    except (OSError, ValueError):
        return None


@cache
def keep_freed_memory() -> None:
    """Let the C library keep freed memory, so that a forward pass reuses the pages of the previous one.

    glibc by default returns large blocks to the system, and every new page costs a page fault and 4 KiB of zeroing:
    10 to 20 % of a prefill. No effect on other systems.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            if mallopt(M_MMAP_THRESHOLD, HEAP_BYTES) or mallopt(M_MMAP_THRESHOLD, OLD_GLIBC_LIMIT):
                mallopt(M_TRIM_THRESHOLD, HEAP_BYTES)


def release_freed_memory() -> None:
    """Return freed memory to the system, also what `keep_freed_memory` keeps, and PyTorch on a GPU.

    After a model is dropped, so that another one has room.
    """
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def use_large_pages(tensor: torch.Tensor) -> torch.Tensor:
    """Request pages of 2 MiB for a tensor that has not been written to, and return it.

    A pass over it then needs few address translations. No effect on systems without such pages.
    """
    first = -(-tensor.data_ptr() // LARGE_PAGE) * LARGE_PAGE
    size = (tensor.data_ptr() + tensor.nbytes) // LARGE_PAGE * LARGE_PAGE - first
    if sys.platform == "linux" and tensor.device.type == "cpu" and size > 0:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), MADV_HUGEPAGE)
    return tensor


class LargePages:
    """Memory for many tensors, one after the other in pages of 2 MiB.

    A tensor by itself begins and ends in small pages, as other memory shares them. A matrix of a small model has little
    else, and is read at half of the speed. Here tensors share blocks; a block is freed with the last of its tensors.
    """

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)  # what is left of it

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """An uninitialized tensor like this one, whose values are not copied. Not on a CPU: the tensor itself."""
        if tensor.device.type != "cpu" or not tensor.nbytes:
            return tensor
        size = -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        if size > len(self._block):
            length = max(size, BLOCK_BYTES)
            block = use_large_pages(torch.empty(length + LARGE_PAGE, dtype=torch.uint8))
            self._block = block[-block.data_ptr() % LARGE_PAGE :][:length]
        taken, self._block = self._block[: tensor.nbytes], self._block[size:]
        return taken.view(tensor.dtype).view(tensor.shape).data  # autograd counts changes of each tensor by itself


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak, if the system supports it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of tensors on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = _read_kilobytes("/proc/self/status", "VmHWM")  # Linux, where ru_maxrss is inherited from the parent process
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # not on this system
        return 0
    maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return maximum if sys.platform == "darwin" else 1024 * maximum
