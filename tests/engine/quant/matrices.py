"""Random matrices, and the values that a quantized matrix represents."""

from __future__ import annotations

import torch

from engine.quant.base import Tensors
from engine.quant.panels import Panels
from engine.quant.torch_packed import TorchInt4, TorchInt8

CPU = torch.device("cpu")


def random_matrix(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Seeded values of a standard normal distribution."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def quantized(
    weight_format: Panels | TorchInt8 | TorchInt4, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> tuple[Tensors, torch.Tensor]:
    """Quantize a matrix, 64 rows at a time. Returns its tensors, and the values that they represent in float64."""
    tensors = weight_format.begin(CPU)
    for first in range(0, weight_format.rows, 64):
        weight_format.fill(tensors, first, weight[first : first + 64].float())
    with_bias = {**weight_format.finish(tensors), "bias": bias}
    return with_bias, dequantized(*weight_format.codes(with_bias, 0, weight_format.rows))


def assert_rows_have_their_bits_alone(ops, tensors: Tensors, columns: int) -> None:
    """32 rows of x together and each alone, with any number of threads."""
    x, threads = random_matrix(32, columns), torch.get_num_threads()
    together = ops.linear(x, tensors["weight"], tensors["scales"], None)
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for row in range(32):
                alone = ops.linear(x[row : row + 1], tensors["weight"], tensors["scales"], None)
                assert torch.equal(alone[0], together[row])
    finally:
        torch.set_num_threads(threads)


def dequantized(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Codes [rows, columns] times scales [rows] or [rows, groups] in float64."""
    groups = torch.unflatten(codes.double(), 1, (scales[0].numel(), -1))
    return (groups * scales.double().view(len(codes), -1, 1)).flatten(1)
