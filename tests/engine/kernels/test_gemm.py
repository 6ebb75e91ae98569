"""Products of many rows in C++, compared with float64, on every instruction set that this machine supports."""

from __future__ import annotations

from typing import Any

import pytest
import torch

SHAPES = [(33, 576, 960), (128, 896, 114), (300, 70, 50), (1, 16, 1), (17, 193, 113), (257, 385, 224)]


def draw(rows: int, columns: int, outputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    shapes = ((rows, columns), (outputs, columns), (outputs,))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns", "outputs"), SHAPES)
def test_products_equal_float64(ops: Any, rows: int, columns: int, outputs: int, dtype: torch.dtype) -> None:
    x, weight, bias = draw(rows, columns, outputs, dtype)
    exact = x.double() @ weight.double().T
    scale = (x.double().abs() @ weight.double().abs().T).amax()
    rounding = 2**-8 * exact.abs() if dtype == torch.bfloat16 else 0
    assert ((ops.gemm(x, weight, None, None).double() - exact).abs() <= 1e-6 * scale + rounding).all()
    shifted = exact + bias.double()
    rounding = 2**-8 * shifted.abs() if dtype == torch.bfloat16 else 0
    assert ((ops.gemm(x, weight, None, bias).double() - shifted).abs() <= 1e-6 * scale + rounding).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_alone_and_among_others_on_any_number_of_threads(ops: Any, dtype: torch.dtype) -> None:
    x, weight, bias = draw(301, 390, 230, dtype)
    together = ops.gemm(x, weight, None, bias)
    for first, last in ((0, 1), (5, 22), (250, 301), (100, 228), (0, 300)):
        assert torch.equal(ops.gemm(x[first:last], weight, None, bias), together[first:last])
    torch.set_num_threads(1)
    assert torch.equal(ops.gemm(x, weight, None, bias), together)
    torch.set_num_threads(2)


def test_rows_of_x_may_lie_apart(ops: Any) -> None:
    x, weight, bias = draw(40, 64, 32, torch.bfloat16)
    apart = torch.cat([x, x], dim=1)[:, :64]
    assert torch.equal(ops.gemm(apart, weight, None, bias), ops.gemm(x, weight, None, bias))
    turned = x.T.contiguous().T
    assert torch.equal(ops.gemm(turned, weight, None, bias), ops.gemm(x, weight, None, bias))


def test_a_value_that_is_not_finite_reaches_only_its_own_row(ops: Any) -> None:
    x, weight, _ = draw(50, 64, 32, torch.float32)
    expected = ops.gemm(x, weight, None, None)
    x[20, 3] = torch.inf
    found = ops.gemm(x, weight, None, None)
    assert not found[20].isfinite().any()
    assert torch.equal(found[torch.arange(50) != 20], expected[torch.arange(50) != 20])


@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [((3, 4), (5, 6), None), ((3, 4), (5, 4), (4,)), ((3, 4, 1), (5, 4), None)],
)
def test_other_shapes_are_refused(ops: Any, x: Any, weight: Any, bias: Any) -> None:
    tensors = [torch.zeros(shape) if shape else None for shape in (x, weight, bias)]
    with pytest.raises(RuntimeError, match=r"linear|a weight"):
        ops.gemm(*tensors[:2], None, tensors[2])
