"""Matrices in the blocks of GGUF files: their values are the package gguf's, products are compared with float64."""

from __future__ import annotations

import math

import pytest
import torch

from engine import kernels
from engine.quant.gguf import PANEL, TYPES, Records, choose_format

gguf = pytest.importorskip("gguf")
from tests.engine.quant.blocks import HALVES, exact_values, random_blocks  # noqa: E402
from tests.engine.quant.matrices import CPU, assert_rows_have_their_bits_alone, random_matrix  # noqa: E402

KINDS = {name: gguf.GGMLQuantizationType[name] for name in HALVES}
DTYPES = [torch.float32, torch.bfloat16]
# Errors of a product: float32 sums, relative to the sum of magnitudes; rounding of the result; half a step of x, which
# is 1/32,639 of the largest value of its group, or less of its row (8-bit codes).
SUM, ROUNDING = 1e-6, {torch.float32: 2**-24, torch.bfloat16: 2**-8}
GROUPS = {"Q5_0": 0, "Q8_0": 0, "Q6_K": 16}  # 0: the row; the others 32
FEW = (("Q4_1", 96), ("Q6_K", 64), ("Q8_0", 32), ("Q5_K", 40))  # a matrix with parts in several types


def matrix(*parts: tuple[str, int], columns: int, dtype=torch.float32) -> tuple[Records, dict, torch.Tensor]:
    """Parts (type, rows) with random blocks: the format, the tensors, and the exact values in float64."""
    weight_format = choose_format([(KINDS[name], rows) for name, rows in parts], columns, dtype)
    tensors, values, first = weight_format.empty(CPU), [], 0
    for seed, (name, rows) in enumerate(parts):
        blocks = random_blocks(KINDS[name], rows, columns, seed)
        values.append(exact_values(KINDS[name], blocks))
        for begin in range(0, rows, 64):
            weight_format.fill(tensors, first + begin, blocks[begin : begin + 64])
        first += rows
    return weight_format, {**tensors, "bias": None}, torch.cat(values).double()


def largest_error(parts, x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The largest allowed error of each result."""
    x, exact, first, steps = x.double(), x.double() @ weight.T, 0, []
    for name, rows in parts:
        group = GROUPS.get(name, 32) or x.shape[1]
        maxima = torch.unflatten(x.abs(), 1, (-1, group)).amax(2, keepdim=True).expand(-1, -1, group).flatten(1)
        part = weight[first : first + rows].abs()
        steps.append(maxima @ part.T * (0.5 / 32639))
        first += rows
    return SUM * (x.abs() @ weight.abs().T) + 1.001 * torch.cat(steps, 1) + ROUNDING[dtype] * exact.abs() + 1e-30


@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_the_files_values_to_the_bit(ops, kind, monkeypatch):
    for rows in (1, 33, 150):
        weight_format, tensors, weight = matrix((kind, rows), columns=512)
        ids = torch.tensor([rows - 1, 0, rows // 2])
        for active in (ops, None):
            monkeypatch.setattr(kernels, "_active_ops", active)
            for first in range(0, rows, 64):
                assert torch.equal(weight_format.dense(tensors, first, rows, torch.float32), weight[first:].float())
            assert torch.equal(weight_format.dense(tensors, 0, rows, torch.bfloat16), weight.bfloat16())
            assert torch.equal(weight_format.lookup(tensors, ids), weight[ids].float())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q8_0"])
def test_blocks_of_real_weights_are_kept(kind):
    weight = random_matrix(64, 96).numpy()
    blocks = torch.from_numpy(gguf.quants.quantize(weight, KINDS[kind]))
    weight_format = choose_format([(KINDS[kind], 64)], 96, torch.float32)
    tensors = weight_format.empty(CPU)
    weight_format.fill(tensors, 0, blocks)
    assert torch.equal(weight_format.dense(tensors, 0, 64, torch.float32), exact_values(KINDS[kind], blocks))


def test_a_matrix_takes_the_memory_of_the_file():
    for kind in TYPES:
        name = gguf.GGMLQuantizationType(kind).name
        tensors, blocks = matrix((name, 64), columns=512)[1], random_blocks(KINDS[name], 64, 512)
        unpacked = 64 * 2 * 4 if kind in (12, 13) else 0  # 6-bit scales become bytes
        assert tensors["weight"].nbytes == blocks.nbytes + unpacked


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", [*([(kind, 70)] for kind in KINDS), FEW], ids=[*KINDS, "mixed"])
def test_a_product_uses_the_files_values(ops, parts, dtype):
    for columns in (256, 768):
        _, tensors, weight = matrix(*parts, columns=columns, dtype=dtype)
        for rows in (1, 2, 3, 5, 8, 13, 32):
            x = random_matrix(rows, columns, dtype=dtype, seed=rows)
            y = ops.linear(x, tensors["weight"], tensors["scales"], None)
            error, bound = (y.double() - x.double() @ weight.T).abs(), largest_error(parts, x, weight, dtype)
            assert y.dtype == dtype and (error <= bound).all(), (columns, rows)


def test_a_bias_is_added_in_every_part(ops):
    _, tensors, _ = matrix(*FEW, columns=256)
    x, bias = random_matrix(3, 256), random_matrix(232, seed=1)
    plain, shifted = (ops.linear(x, tensors["weight"], tensors["scales"], part) for part in (None, bias))
    assert torch.equal(plain + bias, shifted)


def test_a_row_has_the_same_bits_alone_and_with_any_number_of_threads(ops):
    for parts in (*([(kind, 160)] for kind in KINDS), FEW):
        _, tensors, _ = matrix(*parts, columns=1024)
        assert_rows_have_their_bits_alone(ops, tensors, 1024)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinite_rows_become_nan_and_rows_of_zeros_zero(ops, kind):
    _, tensors, _ = matrix((kind, 32), columns=256)
    x = random_matrix(4, 256)
    x[0, 63], x[1, 3], x[2] = math.nan, -math.inf, 0
    y = ops.linear(x, tensors["weight"], tensors["scales"], None)
    assert y[:2].isnan().all() and y[2].eq(0).all() and y[3].isfinite().all()


def test_products_of_many_rows_with_gradients_and_in_float16(ops, monkeypatch):
    monkeypatch.setattr(kernels, "_active_ops", ops)
    weight_format, tensors, weight = matrix(*FEW, columns=256)
    x = random_matrix(kernels.MAX_ROWS + 1, 256)
    expected = (x.double() @ weight.T).float()
    with torch.no_grad():
        assert torch.allclose(weight_format.product(tensors, x), expected, atol=1e-4)
        half = weight_format.product(tensors, x[:2].half())
        assert half.dtype == torch.float16 and (half - expected[:2]).abs().max() < 0.02 * expected.abs().max()
    x.requires_grad_()
    weight_format.product(tensors, x).sum().backward()
    assert torch.allclose(x.grad, weight.sum(0).float().expand(len(x), -1), atol=1e-4)


def test_what_does_not_fit_is_not_kept():
    q4, q6, f16 = KINDS["Q4_0"], KINDS["Q6_K"], gguf.GGMLQuantizationType.F16
    assert choose_format([(q4, 40)], 64, torch.float32) == Records(40, 64, torch.float32, ((q4, 40),))
    for parts, columns in (([(q4, 40), (q4, 32)], 64), ([(q6, 32)], 128), ([(q4, 32), (f16, 32)], 64)):
        assert choose_format(parts, columns, torch.float32) is None


def test_the_operators_refuse_wrong_shapes(ops):
    _, tensors, _ = matrix(*FEW, columns=256)
    weight, parts = tensors["weight"], tensors["scales"]
    wrong = parts.clone()
    wrong[0, 0] = 1
    ragged = parts.clone()
    ragged[0, 1] = 95
    for x, data, description in (
        (random_matrix(1, 224), weight, parts),
        (random_matrix(1, 256), weight[:-64], parts),
        (random_matrix(1, 256), weight, wrong),
        (random_matrix(1, 256), weight, ragged),
        (random_matrix(1, 256), weight[None], parts),
        (random_matrix(1, 256), weight, parts[:0]),
    ):
        with pytest.raises(RuntimeError, match=r"linear|records"):
            ops.linear(x, data, description, None)
    for row in (-1, 8 * PANEL):
        with pytest.raises(RuntimeError, match=rf"row {row} of 232"):
            ops.decode_rows(weight, parts, torch.tensor([row]), weight.float())
