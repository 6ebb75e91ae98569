"""Products with an adapter in C++: the weight's product plus B A x, rounded once, on every instruction set."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine import kernels
from engine.layers.lora import Adapter, Pair
from tests.engine.kernels.formats import FORMATS, matrix, multiplied

CPU = torch.device("cpu")
# First row, height and rank of each pair. The first fills panels of 32 rows, the others neither begin nor end with one.
PAIRS = [(0, 64, 8), (70, 47, 3), (117, 100, 17)]
SUM, ROUNDING = 2e-6, {torch.float32: 2**-24, torch.bfloat16: 2**-8}


def adapter(columns: int, pairs: list[tuple[int, int, int]] = PAIRS, seed: int = 0) -> Adapter:
    """A frozen adapter with random A and B, which add as much as the weight does."""
    generator = torch.Generator().manual_seed(seed)
    made = Adapter(columns, [Pair(slice(first, first + height), rank, 0.5) for first, height, rank in pairs], 0.0, CPU)
    made.initialize(generator)
    with torch.no_grad():
        for b in made.b:
            b.copy_(torch.randn(b.shape, generator=generator))
    return made.requires_grad_(False)


def branch(made: Adapter, x: torch.Tensor, rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """s B A x [N, rows] in float64 of A and s B as they are packed in a dtype, and the sums of magnitudes."""
    y = torch.zeros(2, len(x), rows, dtype=torch.float64)
    for pair, wide_a, wide_b in made:
        a, b = wide_a.to(dtype).double(), (wide_b * pair.scale).to(dtype).double()
        y[0, :, pair.rows] = x.double() @ a.T @ b.T
        y[1, :, pair.rows] = x.double().abs() @ a.abs().T @ b.abs().T
    return y[0], y[1]


@pytest.fixture
def active(ops: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every instruction set in turn is in use."""
    monkeypatch.setattr(kernels, "_loaded_ops", ops)
    monkeypatch.setattr(kernels, "_active_ops", ops)
    return ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["dense", *FORMATS])
def test_the_branch_is_added_before_rounding(active, name, dtype):
    columns = 256 if name != "dense" else 132
    if name == "dense":
        generator = torch.Generator().manual_seed(1)
        weight, scales = torch.randn(230, columns, generator=generator).to(dtype), None
        bias = torch.randn(230, generator=generator).to(dtype)
        values = weight.double()
    else:
        _, tensors, values = matrix(name, columns)
        weight, scales, bias = tensors["weight"], tensors["scales"], tensors["bias"].to(dtype)
    made = adapter(columns)
    packed = made.packed(dtype)
    for operator, rows in ((active.linear, 1), (active.linear, 7), (active.linear, 32), (active.gemm, 70)):
        x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).to(dtype)
        y = operator(x, weight, scales, bias, packed.data, packed.sizes).double()
        if operator is active.linear and name != "dense":  # which rounds x to integers
            base = operator(x.float(), weight, scales, bias.float()).double()
        else:
            base = x.double() @ multiplied(active, name, values, dtype).T + bias.double()
        added, magnitudes = branch(made, x, len(bias), dtype)
        bound = SUM * (magnitudes + x.double().abs() @ values.abs().T + bias.double().abs())
        assert ((y - base - added).abs() <= bound + ROUNDING[dtype] * (base + added).abs()).all(), (name, rows)
        assert torch.equal(operator(x, weight, scales, bias)[:, 64:70].double(), y[:, 64:70])  # rows without a pair


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["dense", "int8", "int4", "nf4", "mixed"])
def test_a_row_has_its_bits_alone_with_any_number_of_threads(active, name, dtype):
    columns, threads = 1024, torch.get_num_threads()
    if name == "dense":
        rows = 2000
        weight, scales = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(dtype), None
    else:
        tensors = matrix(name, columns)[1]
        weight, scales, rows = tensors["weight"], tensors["scales"], 230
    packed = adapter(columns, [*PAIRS[:2], (117, rows - 117, 9)]).packed(dtype)
    x = torch.randn(70, columns, generator=torch.Generator().manual_seed(3)).to(dtype)
    together = active.linear(x[:32], weight, scales, None, packed.data, packed.sizes)
    many = active.gemm(x, weight, scales, None, packed.data, packed.sizes)
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for row in range(32):
                alone = active.linear(x[row : row + 1], weight, scales, None, packed.data, packed.sizes)
                assert torch.equal(alone[0], together[row])
            for first, last in ((0, 70), (3, 40), (69, 70)):
                assert torch.equal(
                    active.gemm(x[first:last], weight, scales, None, packed.data, packed.sizes), many[first:last]
                )
    finally:
        torch.set_num_threads(threads)


def test_sizes_that_do_not_fit_are_refused(ops):
    x, weight = torch.ones(1, 8), torch.ones(40, 8)

    def multiply(data: torch.Tensor, sizes: list[list[int]]) -> torch.Tensor:
        return ops.linear(x, weight, None, None, data, torch.tensor(sizes))

    fitting = torch.zeros(2 * 8 + 64 * 2)
    assert torch.equal(multiply(fitting, [[0, 8, 0, 40, 2]]), x @ weight.T)
    for sizes in (
        [[0, 8, 0, 40, 1]],  # too short
        [[0, 8, 0, 70, 2]],  # more rows than the weight has
        [[0, 4, 0, 40, 2]],  # fewer columns
        [[0, 8, 0, 20, 1], [0, 8, 10, 20, 1]],  # the same rows twice
        [[0, 8, 0, 40, 0]],
        [[0, 8, 0, -40, 2]],
    ):
        with pytest.raises(RuntimeError, match="adapter"):
            multiply(fitting, sizes)
    with pytest.raises(IndexError):
        multiply(fitting, [[1, 8, 0, 40, 2]])
    with pytest.raises(RuntimeError, match="adapters: sizes"):
        ops.linear(x, weight, None, None, fitting, torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(RuntimeError):
        ops.linear(x, weight, None, None, fitting.bfloat16(), torch.tensor([[0, 8, 0, 40, 2]]))
