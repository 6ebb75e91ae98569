"""Random matrices, and the values that a quantized matrix represents."""

from __future__ import annotations

import torch


def random_matrix(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def quantized(weight_format, weight: torch.Tensor, bias: torch.Tensor | None = None):
    """A quantized matrix: its tensors, and the values that they represent in float64."""
    tensors = weight_format.begin(CPU)
    for first in range(0, weight_format.rows, 64):
        weight_format.fill(tensors, first, weight[first : first + 64].float())
    tensors = {**weight_format.finish(tensors), "bias": bias}
    return tensors, dequantized(*weight_format.codes(tensors, 0, weight_format.rows))


def dequantized(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Codes times scales in float64."""
    groups = torch.unflatten(codes.double(), 1, (scales[0].numel(), -1))
    return (groups * scales.double().view(len(codes), -1, 1)).flatten(1)
