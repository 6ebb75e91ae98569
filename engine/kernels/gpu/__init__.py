"""Triton kernels for NVIDIA GPUs, where Triton works. PyTorch's operators do the same without it.

Triton comes with torch for CUDA, so it is imported when a tensor on such a device is first seen.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

DEVICE_TYPES = {"cuda"}  # the tests add "cpu", to do on a CPU all that is done on a GPU
MAX_DENSE_ROWS = 8  # whose products with a dense matrix take as long as reading it; beyond, cuBLAS is faster
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def for_rows(x: Tensor) -> Any:
    """The operators if they take this input, else None.

    They take up to 32 bits on an NVIDIA GPU, in the dtype of the weights, without gradients.
    """
    if x.dtype not in DTYPES or torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
        return None
    return for_device(x.device)


def for_device(device: torch.device) -> Any:
    """The operators if this is an NVIDIA GPU on which Triton works, else None."""
    return _operators(device) if device.type in DEVICE_TYPES and not torch.compiler.is_compiling() else None


@cache
def _operators(device: torch.device) -> Any:
    """The operators after a trial run; None, with a warning, if Triton is missing or has no compiler."""
    try:
        from engine.kernels.gpu import operators

        operators.try_out(device)
    except Exception as error:  # of a dozen kinds
        reason = str(error).strip().partition("\n")[0]
        logging.getLogger("bareloop").warning("Triton does not work, so everything is slower (%s)", reason)
        return None
    return operators
