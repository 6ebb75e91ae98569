"""Products of many rows with quantized weights in C++: the weights are those of `dense`, on every instruction set."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine import kernels
from engine.quant import base
from engine.quant.base import Format, Tensors
from tests.engine.kernels.formats import COLUMNS, FORMATS, is_amx, matrix, multiplied


def multiply(ops: Any, tensors: Tensors, x: torch.Tensor) -> torch.Tensor:
    bias = tensors["bias"]
    assert bias is not None
    y: torch.Tensor = ops.gemm(x, tensors["weight"], tensors["scales"], bias.to(x.dtype))
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMATS)
def test_products_are_those_of_the_dequantized_weights(ops: Any, name: str, dtype: torch.dtype) -> None:
    for columns in COLUMNS.get(name, (256,) if name == "mixed" else (32, 288, 608)):
        _, tensors, values = matrix(name, columns)
        weight = multiplied(ops, name, values, dtype)
        for rows in (33, 100, 257):
            x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).to(dtype)
            bias = tensors["bias"].to(dtype).double()
            y, exact = multiply(ops, tensors, x), x.double() @ weight.T + bias
            magnitudes = x.double().abs() @ weight.abs().T + bias.abs()
            rounding = (2**-8 if dtype == torch.bfloat16 else 2**-24) * exact.abs()
            assert y.dtype == dtype and ((y.double() - exact).abs() <= 1e-6 * magnitudes + rounding).all(), columns


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_has_its_bits_however_a_prompt_is_cut_and_on_any_number_of_threads(ops: Any, name: str) -> None:
    columns = 768 if name in COLUMNS or name == "mixed" else 608
    _, tensors, _ = matrix(name, columns)
    x, threads = torch.randn(301, columns, generator=torch.Generator().manual_seed(1)), torch.get_num_threads()
    together = multiply(ops, tensors, x)
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for first, last in ((0, 1), (5, 38), (100, 228), (0, 301)):
                assert torch.equal(multiply(ops, tensors, x[first:last]), together[first:last])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("columns", [32, 100, 896, 1312])
def test_amx_gives_a_row_its_bits_among_any_number_of_others(ops: Any, columns: int) -> None:
    if not is_amx(ops):
        pytest.skip("other instruction sets have another order of sums for few rows")
    generator = torch.Generator().manual_seed(columns)
    sizes = ((150, columns), (150,), (70, columns))
    weight, bias, x = (torch.randn(*size, generator=generator).bfloat16() for size in sizes)
    together = ops.gemm(x, weight, None, bias)
    for first, last in ((0, 1), (3, 5), (8, 25), (37, 69)):
        assert torch.equal(ops.linear(x[first:last], weight, None, bias), together[first:last])
        assert torch.equal(ops.gemm(x[first:last], weight, None, bias), together[first:last])


@pytest.mark.parametrize("name", ["int8", "nf4", "Q4_1"])
def test_prompts_in_bfloat16_are_multiplied_by_the_kernel(ops: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From few rows to those from which PyTorch's product of the dequantized matrix is faster."""
    dtype = torch.bfloat16
    monkeypatch.setattr(kernels, "_active_ops", ops)
    monkeypatch.setattr(base, "slow_bfloat16", lambda: True)
    by_blocks = []
    monkeypatch.setattr(Format, "product_by_blocks", lambda self, tensors, x: by_blocks.append(len(x)))
    weight_format, tensors, values = matrix(name, 320)
    weight = multiplied(ops, name, values, dtype)
    tensors = {**tensors, "bias": tensors["bias"].to(dtype)}
    for rows in (kernels.MAX_ROWS + 1, base.LARGE_ROWS - 1):
        x = torch.randn(rows, 320).to(dtype)
        with torch.no_grad():
            y = weight_format.product(tensors, x)
        exact = x.double() @ weight.T + tensors["bias"].double()
        assert y.dtype == dtype and torch.allclose(y.double(), exact, rtol=0.01, atol=0.01)
    with torch.no_grad():
        weight_format.product(tensors, torch.zeros(base.LARGE_ROWS, 320, dtype=dtype))
        weight_format.product(tensors, torch.zeros(200, 320))  # a float32 model keeps the bits of dequantized weights
    weight_format.product(tensors, torch.zeros(100, 320, dtype=dtype))  # with gradients
    assert by_blocks == [base.LARGE_ROWS, 200, 100]
