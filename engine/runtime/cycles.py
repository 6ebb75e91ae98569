"""CPU cycles of this process in user space, if Linux allows a process to count its own."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

SYSTEM_CALLS = {"x86_64": 298, "aarch64": 241}  # perf_event_open
HARDWARE, CPU_CYCLES = 0, 0  # linux/perf_event.h
INHERIT, EXCLUDE_KERNEL, EXCLUDE_HV = 1 << 1, 1 << 5, 1 << 6


class CycleCounter:
    """Counts from now on, in this thread and in threads it starts: create it before torch starts its threads."""

    def __init__(self) -> None:
        self._file = _open() if sys.platform == "linux" else -1

    def read(self) -> int | None:
        """Cycles so far; None if the system does not count them."""
        return struct.unpack("Q", os.read(self._file, 8))[0] if self._file >= 0 else None


def _open() -> int:
    number = SYSTEM_CALLS.get(platform.machine())
    if number is None:
        return -1
    flags = INHERIT | EXCLUDE_KERNEL | EXCLUDE_HV
    attributes = struct.pack("IIQQQQQIIQ", HARDWARE, 64, CPU_CYCLES, 0, 0, 0, flags, 0, 0, 0)
    this_thread, any_cpu, no_group = 0, -1, -1
    try:
        return int(ctypes.CDLL(None).syscall(number, attributes, this_thread, any_cpu, no_group, 0))
    except (OSError, AttributeError):
        return -1
