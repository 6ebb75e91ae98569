"""Products of a few rows with a dense matrix in Triton."""

from __future__ import annotations

import pytest
import torch

from engine.kernels import gpu
from engine.layers.mlp import FUNCTIONS

pytest.importorskip("triton")
from engine.kernels.gpu import dense, operators
from tests.engine.kernels.gpu.agreement import INTERPRETED, check

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((1, 2), (5, 33), (16, 256), (30, 300))  # rows, k


def calls() -> None:
    """Launches for test_compiling.py."""
    for count, rows, k in ((1, 3072, 2048), (8, 3072, 2048), (1, 128256, 2048), (4, 4608, 3584)):
        x, weight = (torch.empty(n, k, dtype=torch.bfloat16) for n in (count, rows))
        operators.dense_linear(x, weight)
    for dtype in DTYPES:
        x, weight, bias = (torch.empty(*shape, dtype=dtype) for shape in ((2, 900), (300, 900), (300,)))
        operators.dense_linear(x, weight, bias)
        operators.dense_gated(x, weight, bias, "silu")


@pytest.mark.parametrize("warps", [1, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_linear_agrees_with_float64(gpu_device, dtype, warps, monkeypatch):
    monkeypatch.setattr(dense, "MAX_WARPS", warps)
    for rows, k in SHAPES:
        weight, bias = torch.randn(rows, k).to(dtype), torch.randn(rows).to(dtype)
        for count in (1, 3, 8):
            x = torch.randn(count, k).to(dtype)
            expected = x.double() @ weight.double().T
            actual = operators.dense_linear(x.to(gpu_device), weight.to(gpu_device))
            check(actual, expected.to(dtype))
            actual = operators.dense_linear(x.to(gpu_device), weight.to(gpu_device), bias.to(gpu_device))
            check(actual, (expected + bias.double()).to(dtype))


def test_every_row_has_the_bits_that_it_has_alone(gpu_device, monkeypatch):
    if gpu_device == "cpu":
        monkeypatch.setattr(dense, "MAX_WARPS", 1)
    large = ((1000, 2048), (4000, 896), (64, 8192), (40000, 2048), (6000, 904))
    for rows, k in ((5, 33), (3, 300)) if gpu_device == "cpu" else large:
        for dtype in DTYPES:
            weight = torch.randn(rows, k).to(dtype).to(gpu_device)
            x = torch.randn(gpu.MAX_DENSE_ROWS, k).to(dtype).to(gpu_device)
            alone = torch.cat([operators.dense_linear(row, weight) for row in x.split(1)])
            for count in range(1, len(x) + 1):
                assert torch.equal(operators.dense_linear(x[:count], weight), alone[:count]), (rows, k, dtype, count)


def test_numbers_that_are_not_finite_stay_in_their_entries(gpu_device):
    weight, x = torch.randn(6, 40), torch.randn(3, 40)
    weight[2, 39], x[1, 7] = torch.inf, torch.nan
    actual = operators.dense_linear(x.to(gpu_device), weight.to(gpu_device)).cpu()
    finite = torch.ones(3, 6, dtype=torch.bool)
    finite[1], finite[:, 2] = False, False
    assert torch.equal(actual.isfinite(), finite)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_dense_gated_has_the_bits_of_product_and_activation(gpu_device, activation, dtype):
    for size, k in ((5, 34), (8, 256)):
        weight, bias = torch.randn(2 * size, k).to(dtype).to(gpu_device), torch.randn(2 * size).to(dtype).to(gpu_device)
        x = (torch.randn(3, k) / k**0.5).to(dtype).to(gpu_device)
        for optional in (None, bias):
            gate_up = operators.dense_linear(x, weight, optional)
            expected = operators.gated_activation(gate_up, activation)
            assert torch.equal(operators.dense_gated(x, weight, optional, activation), expected)
            if not (dtype == torch.bfloat16 and INTERPRETED):
                gate, up = gate_up.cpu().chunk(2, dim=-1)
                check(expected, FUNCTIONS[activation](gate) * up)
