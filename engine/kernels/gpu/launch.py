"""Launching a Triton kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run a kernel for every program of the grid, on the device of its first argument."""
    with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]  # Triton launches on the current device
        kernel[grid](first, *arguments, **constants)
