"""Products and lookups of every built-in weight format, compared with float64."""

from __future__ import annotations

import pytest
import torch

from engine.quant.panels import Panels
from engine.quant.torch_packed import TorchInt4, TorchInt8
from tests.engine.quant.matrices import quantized, random_matrix

FORMATS = {
    "int8": lambda *shape: Panels(*shape, 8),
    "int4": lambda *shape: Panels(*shape, 4),
    "int4 in groups of 16": lambda *shape: Panels(*shape, 4, 16),
    "torch int8": TorchInt8,
    "torch int4": TorchInt4,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_many_rows_few_rows_and_gradients_agree_with_float64(name, dtype, monkeypatch):
    rows, columns = 1120, 256
    monkeypatch.setattr("engine.quant.base.DENSE_BLOCK", 512 * columns * dtype.itemsize)  # bytes: three blocks
    bias = random_matrix(rows, dtype=dtype)
    weight_format = FORMATS[name](rows, columns, dtype)
    tensors, weight = quantized(weight_format, random_matrix(rows, columns) / 16, bias)
    x = random_matrix(33, columns, dtype=dtype)
    exact = x.double() @ weight.T + bias.double()
    with torch.inference_mode():
        products = {count: weight_format.product(tensors, x[:count]) for count in (33, 3, 1)}
    for count, y in products.items():
        assert y.dtype == dtype and y.shape == (count, rows)
        # Weights are rounded to 16 bits, as are sums of 256 products; with few rows x may be rounded to 8 bits.
        tolerance = 1e-3 if dtype == torch.float32 else 2e-2
        tolerance = 0.05 if isinstance(weight_format, Panels) and weight_format.bits == 4 and count < 33 else tolerance
        assert torch.allclose(y.double(), exact[:count], rtol=tolerance, atol=tolerance)
    x.requires_grad_()
    weight_format.product(tensors, x).float().sum().backward()
    assert torch.allclose(x.grad.double(), weight.sum(0).expand(33, -1), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["int8", "int4 in groups of 16", "torch int8"])
def test_an_embedding_looks_up_rows(name):
    weight_format = FORMATS[name](64, 48, torch.bfloat16)
    tensors, weight = quantized(weight_format, random_matrix(64, 48))
    ids = torch.tensor([63, 0, 7, 32, 31, 7])
    assert torch.equal(weight_format.lookup(tensors, ids), weight[ids].float().bfloat16())
    assert weight_format.lookup(tensors, ids[:0]).shape == (0, 48)
