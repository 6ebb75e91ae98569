"""The gated activation in Triton agrees with PyTorch's functions."""

from __future__ import annotations

import pytest
import torch

from engine.layers.mlp import FUNCTIONS

pytest.importorskip("triton")
from engine.kernels.gpu import operators
from tests.engine.kernels.gpu.agreement import check


def calls() -> None:
    """Launches for test_compiling.py."""
    for activation in FUNCTIONS:
        operators.gated_activation(torch.randn(2, 16384, dtype=torch.bfloat16), activation)
    operators.gated_activation(torch.randn(2, 2 * 37), "silu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_gated_activation_agrees_with_the_functions(gpu_device, activation, dtype):
    for count, size in ((1, 7), (3, 1500)):
        gate_up = 3 * torch.randn(count, 2 * size + 3).to(dtype)
        view = gate_up[:, : 2 * size]
        gate, up = view.chunk(2, dim=-1)
        actual = operators.gated_activation(gate_up.to(gpu_device)[:, : 2 * size], activation)
        check(actual, FUNCTIONS[activation](gate) * up)


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_extreme_gates(gpu_device, activation):
    gate = torch.tensor([[0.0, -0.0, 90, -90, 1e4, -1e4, torch.nan]])
    actual = operators.gated_activation(torch.cat([gate, torch.ones_like(gate)], dim=1).to(gpu_device), activation)
    torch.testing.assert_close(actual.cpu(), FUNCTIONS[activation](gate), equal_nan=True, rtol=1e-6, atol=1e-6)
