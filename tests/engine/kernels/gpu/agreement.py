"""How closely kernels must agree with PyTorch's operators that round at the same places."""

from __future__ import annotations

import os

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's interpreter truncates to bfloat16, and doesn't round


def check(actual: Tensor, expected: Tensor, error: float = 2e-6) -> None:
    """Assert the same dtype, shape and nearly the same numbers.

    float32: up to `error` of the largest. 16-bit numbers: the same bits in 95 %, and neighbours (of either of two
    roundings) otherwise.
    """
    actual = actual.cpu()
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    difference, size = (actual.double() - expected.double()).abs(), expected.double().abs()
    if expected.dtype == torch.float32:
        assert difference.max() <= error * size.max()
    elif expected.dtype == torch.bfloat16 and INTERPRETED:
        assert (difference <= 2**-5 * size + 2**-6 * size.max()).all()
    else:
        assert (difference <= 2 * torch.finfo(expected.dtype).eps * size + error * size.max()).all()
        assert (difference > 0).sum() <= max(2, 0.05 * difference.numel())
