"""Memory that is freed and returned."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from engine.runtime.memory import keep_freed_memory, release_freed_memory

SIZE = 2**27  # bytes: less than the heap keeps


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="only there freed memory is kept")
def test_memory_that_is_kept_for_speed_can_be_returned():
    keep_freed_memory()
    numbers = torch.zeros(SIZE // 4).fill_(1)
    full = resident()
    del numbers
    release_freed_memory()
    assert full - resident() > SIZE // 2
