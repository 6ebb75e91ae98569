"""All operators for a GPU, as `gpu.for_rows` returns them."""

from __future__ import annotations

import torch

from engine.kernels.gpu.cutoffs import MAX_VOCAB
from engine.kernels.gpu.panels import dequantize, linear
from engine.kernels.gpu.sampling import sample

__all__ = ["MAX_VOCAB", "dequantize", "linear", "sample", "try_out"]


def try_out(device: torch.device) -> None:
    """Compile and run a small kernel. Raises one of many exceptions if Triton does not work on this device."""
    weight = torch.zeros(1, 8, 32, 4, dtype=torch.int8, device=device)
    linear(torch.ones(1, 32, device=device), weight, torch.ones(32, device=device), 32)
