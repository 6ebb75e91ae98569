"""nf4 and fp4 in panels: exactly bitsandbytes' numbers, products compared with float64, for every instruction set."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch

from engine import LLM, SamplingParams, kernels
from engine.layers.linear import Matrix, takes_fused_kernels
from engine.quant.base import Tensors
from engine.quant.bitsandbytes import Bnb4
from engine.quant.tables import TABLE, TablePanels, in_panels
from tests.engine.quant.matrices import CPU, assert_rows_have_their_bits_alone, random_matrix

pytestmark = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")

KINDS = [("nf4", False), ("fp4", False), ("nf4", True), ("fp4", True)]
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(32, 64), (64, 192), (96, 896)]
# Errors of a product: rounding of the table's numbers (without VNNI), relative to the scale of each weight; the others
# as in test_panels.py.
NUMBER, SUM, ROUNDING, STEP = 0.5 / 8191, 1e-6, {torch.float32: 2**-24, torch.bfloat16: 2**-8}, 0.5 / 127


def filled(weight_format: Bnb4 | TablePanels, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    tensors = weight_format.begin(CPU)
    for first in range(0, weight_format.rows, 64):
        weight_format.fill(tensors, first, weight[first : first + 64])
    return weight_format.finish(tensors)


def pair(kind: str, double: bool, weight: torch.Tensor) -> tuple[TablePanels, Tensors, Tensors]:
    """A format in panels, its tensors, and those of bitsandbytes' layout."""
    origin = Bnb4(*weight.shape, torch.float32, kind, double)
    weight_format = in_panels(origin)
    assert weight_format is not None and weight_format.origin == origin and weight_format.fused
    return weight_format, filled(weight_format, weight), filled(origin, weight)


@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_panels_hold_exactly_the_numbers_of_bitsandbytes_and_turn_back_to_the_last_bit(ops, kind, double):
    for rows, columns in [*SHAPES, (2112, 64)]:
        weight = random_matrix(rows, columns)
        weight[1] = 0
        weight_format, tensors, original = pair(kind, double, weight)
        assert {n: (t.shape, t.dtype) for n, t in tensors.items()} == {
            n: (t.shape, t.dtype) for n, t in weight_format.empty(CPU).items()
        }
        assert tensors["weight"].nbytes == rows * columns // 2
        assert tensors["scales"].nbytes == 4 * (rows * columns // 64 + TABLE)
        exact = weight_format.origin.dense(original, 0, rows, torch.float32)
        for dtype in DTYPES:
            like = torch.empty(0, dtype=dtype)
            for first, last in {(0, rows), (rows // 2 // 32 * 32, rows), (0, min(rows, 33))}:
                dense = ops.dequantize(tensors["weight"], tensors["scales"], first, last, like)
                assert torch.equal(dense, exact[first:last].to(dtype))
        back = weight_format.to_origin(tensors)
        assert back.keys() == original.keys()
        again = weight_format.origin.dense(back, 0, rows, torch.float32)
        assert torch.equal(again, exact) and torch.equal(back["weight"], original["weight"])
        if not double:
            assert torch.equal(back["scales"], original["scales"])


def test_without_the_kernels_the_numbers_are_the_same(monkeypatch):
    weight_format, tensors, original = pair("nf4", False, random_matrix(96, 128))
    monkeypatch.setattr(kernels, "_active_ops", None)
    exact = weight_format.origin.dense(original, 32, 90, torch.float32)
    assert torch.equal(weight_format.dense(tensors, 32, 90, torch.float32), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_product_uses_the_numbers(ops, kind, rows, dtype):
    for out, size in SHAPES:
        x = random_matrix(rows, size, dtype=dtype, seed=out)
        weight_format, tensors, original = pair(kind, False, random_matrix(out, size, seed=size))
        weight = weight_format.origin.dense(original, 0, out, torch.float32).double()
        scales = weight_format.group_scales(tensors, 0, out).double().repeat_interleave(64, dim=1)
        for bias in (None, random_matrix(out, dtype=dtype)):
            y = ops.linear(x, tensors["weight"], tensors["scales"], bias)
            assert y.dtype == dtype and y.shape == (rows, out)
            exact = x.double() @ weight.T + (0 if bias is None else bias.double())
            largest = torch.unflatten(x.double().abs(), 1, (-1, 32)).amax(2).repeat_interleave(32, dim=1)
            error = 1.001 * STEP * largest @ weight.abs().T + NUMBER * 1.01 * x.double().abs() @ scales.T
            error += SUM * x.double().abs() @ weight.abs().T + ROUNDING[dtype] * exact.abs() + 1e-30
            assert ((y.double() - exact).abs() <= error).all(), (out, size)


def test_the_largest_sums_are_exact(ops):
    x, weight = torch.full((1, 1024), 3.0), torch.full((32, 1024), -1.0)
    weight[1::2] = 1.0
    _, tensors, _ = pair("nf4", False, weight)  # 1 and -1 are in the table
    y = ops.linear(x, tensors["weight"], tensors["scales"], None)
    assert torch.allclose(y, x @ weight.T, rtol=1e-6)


def test_a_row_has_the_same_bits_alone_and_with_any_number_of_threads(ops):
    _, tensors, _ = pair("nf4", False, random_matrix(288, 2048, seed=1))
    assert_rows_have_their_bits_alone(ops, tensors, 2048)


def test_nan_and_infinite_rows_become_nan_and_rows_of_zeros_become_the_bias(ops):
    bias, x = random_matrix(32), random_matrix(4, 64)
    _, tensors, _ = pair("fp4", False, random_matrix(32, 64))
    x[0, 63], x[1, 3], x[2] = math.nan, -math.inf, 0
    y = ops.linear(x, tensors["weight"], tensors["scales"], bias)
    assert y[:2].isnan().all() and torch.equal(y[2], bias) and y[3].isfinite().all()


def test_the_operators_refuse_wrong_scales(ops):
    _, tensors, _ = pair("nf4", False, random_matrix(32, 64))
    with pytest.raises(RuntimeError, match="scales and table"):
        ops.linear(random_matrix(1, 64), tensors["weight"], tensors["scales"][:-1], None)
    with pytest.raises(RuntimeError, match="not to the numbers of a table"):
        ops.quantize(random_matrix(32, 64), tensors["weight"], tensors["scales"], 0)


@pytest.mark.parametrize("quant", ["nf4", "fp4-double"])
def test_a_model_decodes_in_panels_as_with_dequantized_weights(ops, draw_tiny, tmp_path, monkeypatch, prompt, quant):
    for name in ("_loaded_ops", "_active_ops"):
        monkeypatch.setattr(kernels, name, ops)
    folder = draw_tiny("llama", hidden_size=64, intermediate_size=128, num_attention_heads=4).folder
    llm = LLM.load(folder, "cpu", "float32", quant)
    matrices = [m for m in llm.model.layers.modules() if isinstance(m, Matrix)]
    assert all(isinstance(m.format, TablePanels) for m in matrices) and takes_fused_kernels(llm.model.layers)
    twin = LLM.load(folder, "cpu", "float32")
    for matrix, dense in zip(matrices, (m for m in twin.model.layers.modules() if isinstance(m, Matrix)), strict=True):
        assert matrix.format is not None
        numbers = matrix.format.dense(matrix._parameters, 0, matrix.rows, torch.float32)
        dense.weight = torch.nn.Parameter(numbers, requires_grad=False)
    sequences = [model.sequence() for model in (llm, twin)]
    for sequence in sequences:
        sequence.feed(prompt(9))
    errors = []
    for token in prompt(6, seed=1):
        for sequence in sequences:
            sequence.feed([*sequence.ids, token])
        errors.append((sequences[0].logits - sequences[1].logits).abs().max() / sequences[1].logits.abs().max())
    assert 0 < max(errors) <= 0.05  # x is rounded to 8 bits
    llm.save(tmp_path / "saved")
    again = LLM.load(tmp_path / "saved", "cpu", "float32")
    first = [
        model.generate([prompt(9)], SamplingParams(max_new_tokens=8, ignore_eos=True))[0] for model in (llm, again)
    ]
    assert again.quant == quant and first[0].token_ids == first[1].token_ids
    assert all(
        torch.equal(a.weight, b.weight) and torch.equal(a.scales, b.scales)
        for a, b in zip(matrices, (m for m in again.model.layers.modules() if isinstance(m, Matrix)), strict=True)
    )


def test_matrices_of_partial_panels_stay_in_the_layout_of_bitsandbytes():
    assert in_panels(Bnb4(48, 64, torch.float32)) is None and in_panels(Bnb4(64, 32, torch.float32)) is None
    assert in_panels(None) is None
