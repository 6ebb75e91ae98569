"""Linear without bfloat16 instructions: products in float32, rounded once."""

from __future__ import annotations

import pytest
import torch

from engine.layers.linear import Linear
from engine.quant import base


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [9, 40])
def test_a_bfloat16_product_in_float32_is_rounded_once(monkeypatch, rows, bias):
    monkeypatch.setattr(base, "slow_bfloat16", lambda: True)
    monkeypatch.setattr(base, "DENSE_BLOCK", 4 * 96 * 7)  # blocks of 7 rows, which do not divide 50
    monkeypatch.setattr(base, "ROW_MULTIPLE", 1)
    generator = torch.Generator().manual_seed(0)
    layer = Linear(96, 30, 20, bias=bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
    layer.to(torch.bfloat16)
    x = torch.randn(rows, 96, generator=generator).bfloat16()
    with torch.inference_mode():
        y = layer(x)
    exact = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    magnitudes = x.double().abs() @ layer.weight.double().abs().T
    assert y.dtype == torch.bfloat16 and y.shape == (rows, 50)
    assert ((y.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6 * magnitudes).all()


def test_gradients_do_not_use_the_product_in_float32(monkeypatch):
    monkeypatch.setattr(base, "slow_bfloat16", lambda: True)
    layer = Linear(8, 4).to(torch.bfloat16)
    x = torch.ones(12, 8, dtype=torch.bfloat16, requires_grad=True)
    layer(x).float().sum().backward()
    assert x.grad is not None
