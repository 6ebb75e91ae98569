"""The Triton kernels of panels: in Triton's interpreter on a CPU, if Triton is installed, and on an NVIDIA GPU."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from engine import LLM, SamplingParams, kernels
from engine.quant import base
from engine.quant.base import Tensors
from engine.quant.bitsandbytes import Bnb4
from engine.quant.panels import MAX_GPU_ROWS, Panels, quantize4, quantize8, to_panels
from engine.quant.tables import TablePanels, in_panels

pytest.importorskip("triton")
from engine.kernels import gpu
from engine.kernels.gpu import operators, panels

KINDS = ("int8", "int4", "int4 in groups of 16", "table")
SHAPES = {  # rows, columns; a block of lines is 64 columns (8 bits: 32), of which eight warps multiply one each
    "int8": ((50, 260), (32, 4), (96, 2052)),
    "int4": ((64, 96), (32, 32), (32, 1056)),
    "int4 in groups of 16": ((96, 176), (32, 16)),
    "table": ((64, 192), (32, 64), (32, 576)),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Relative errors: float32 sums, and weights and results that are rounded to 16 bits.
SUM, ROUNDING = 2e-6, {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}


class Case(NamedTuple):
    """A random quantized matrix in panels, and the values that it stands for (float32)."""

    weight: Tensor
    scales: Tensor
    values: Tensor


def matrix(kind: str, rows: int, columns: int, seed: int = 0) -> Case:
    """A seeded matrix; a table is random, too."""
    generator = torch.Generator().manual_seed(seed + rows + columns)
    weight = torch.randn(rows, columns, generator=generator)
    if kind == "table":
        table, scales = torch.randn(16, generator=generator), torch.rand(rows, columns // 64, generator=generator)
        codes = torch.randint(-8, 8, (rows, columns), generator=generator).to(torch.int8)
        by_panel = scales.unflatten(0, (-1, 32)).transpose(1, 2).flatten()
        values = table[codes.int() + 8] * scales.repeat_interleave(64, dim=1)
        return Case(to_panels(codes, 4), torch.cat((by_panel, table)), values)
    group = 0 if kind == "int8" else 16 if kind.endswith("16") else 32
    weight_format = Panels(rows, columns, torch.float32, 4 if group else 8, group)
    tensors = weight_format.empty(torch.device("cpu"))
    weight_format.set_codes(tensors, 0, *(quantize4(weight, group) if group else quantize8(weight)))
    quantized, group_scales = weight_format.codes(tensors, 0, rows)
    groups = quantized.unflatten(1, (-1, group or columns)).float()
    return Case(tensors["weight"], tensors["scales"], (groups * group_scales.float().view(rows, -1, 1)).flatten(1))


def calls() -> None:
    """Launches for test_compiling.py."""
    for kind in KINDS:
        weight, scales, _ = matrix(kind, 64, 8192)
        bias = torch.randn(64, dtype=torch.bfloat16)
        for count in (1, 9, 32):
            operators.linear(torch.randn(count, 8192, dtype=torch.bfloat16), weight, scales, 64, bias)
        operators.linear(torch.randn(32, 8192), weight, scales, 64)
        operators.dequantize(weight, scales, 0, 64, torch.bfloat16)
    weight, scales, _ = matrix("int4", 64, 896)
    for dtype in (torch.bfloat16, torch.float16):  # without splits
        operators.linear(torch.randn(1, 896, dtype=dtype), weight, scales, 64, torch.randn(64, dtype=dtype))
    operators.lookup(weight, scales, torch.zeros(3, dtype=torch.int64), torch.bfloat16)


def largest_error(x: Tensor, values: Tensor, exact: Tensor) -> Tensor:
    """The largest allowed error of x [M, k] times the values [rows, k]."""
    magnitudes = x.double().abs() @ values.double().abs().T
    return (SUM + ROUNDING[x.dtype]) * magnitudes + ROUNDING[x.dtype] * exact.abs() + 1e-6 * (x.dtype == torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_products_agree_with_the_dequantized_values(gpu_device, kind, dtype):
    for (rows, columns), counts in zip(SHAPES[kind], ((1, 3, 17), (16, 32), (1, 8)), strict=False):
        weight, scales, values = matrix(kind, rows, columns)
        bias = torch.randn(rows).to(dtype)
        for count in counts:
            x = torch.randn(count, columns).to(dtype)
            exact = x.double() @ values.double().T
            for b in (None, bias) if count == 1 else (bias,):
                y = operators.linear(
                    x.to(gpu_device), weight.to(gpu_device), scales.to(gpu_device), rows, b if b is None else b.to(gpu_device)
                )
                assert y.dtype == dtype and y.shape == (count, rows)
                expected = exact if b is None else exact + b.double()
                assert ((y.cpu().double() - expected).abs() <= largest_error(x, values, expected)).all(), (rows, count)
