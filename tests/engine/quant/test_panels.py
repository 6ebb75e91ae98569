"""int8 and int4 in panels: compared with their definition, products with float64, for every instruction set."""

from __future__ import annotations

import math

import pytest
import torch

from engine import kernels
from engine.quant.panels import GROUP, PANEL, Panels, from_panels, quantize4, quantize8, to_panels
from tests.engine.quant.matrices import CPU, assert_rows_have_their_bits_alone, dequantized, quantized, random_matrix

BITS_AND_GROUPS = [(8, 32), (4, 32), (4, 16)]  # bits of a weight, and number of int4 weights that share a scale
DTYPES = [torch.float32, torch.bfloat16]
# Errors of a product: float32 sums, relative to the sum of magnitudes; rounding of the result; half a step of x, which
# is relative to the largest value of its row (int8) or group (int4).
SUM, ROUNDING, STEP = 1e-6, {torch.float32: 2**-24, torch.bfloat16: 2**-8}, {8: 0.5 / 32767, 4: 0.5 / 127}
SHAPES = {8: [(1, 4), (32, 32), (33, 36), (50, 260), (96, 896), (7, 1028)], 4: [(32, 32), (64, 96), (96, 896)]}


def largest_error(
    weight_format: Panels, x: torch.Tensor, exact: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """The largest allowed error of a product with this weight (float64)."""
    magnitudes, x = x.double().abs() @ weight.abs().T, x.double().abs()
    group = x.shape[1] if weight_format.bits == 8 else weight_format.group
    maxima = torch.unflatten(x, 1, (-1, group)).amax(2, keepdim=True)
    steps = STEP[weight_format.bits] * maxima.expand(-1, -1, group).flatten(1)
    return SUM * magnitudes + 1.001 * steps @ weight.abs().T + ROUNDING[dtype] * exact.abs() + 1e-30


def test_int8_rounds_each_row_to_the_nearest_of_255_levels():
    weight = random_matrix(70, 100) * 10.0 ** torch.arange(-35, 35)[:, None]
    weight[3] = 0
    codes, scales = quantize8(weight)
    assert codes.dtype == torch.int8 and codes.abs().amax(1).eq(127).sum() == 69 and codes[3].eq(0).all()
    assert ((codes * scales[:, None] - weight).abs() <= 0.5001 * scales[:, None]).all()


def test_int4_error_is_at_most_that_of_the_plain_scale():
    weight = random_matrix(64, 256)
    weight[5] = 0
    codes, scales = quantize4(weight)
    assert codes.min() == -8 and codes.max() == 7 and scales.shape == (64, 8) and scales.dtype == torch.bfloat16
    groups, group_scales = torch.unflatten(weight, 1, (-1, GROUP)), scales.float()[..., None]
    error = (torch.unflatten(codes, 1, (-1, GROUP)) * group_scales - groups).square().sum(2)
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    plain = (largest / -8).bfloat16().float()
    steps = (groups / plain.where(plain != 0, 1)).round().clamp(-8, 7) * plain
    assert (error <= (steps - groups).square().sum(2) + 1e-9).all()
    assert error.sum().sqrt() < 0.0815 * weight.square().sum().sqrt()  # bitsandbytes' NF4: 0.092


@pytest.mark.parametrize("group", [16, 32])
def test_int4_error_is_within_half_a_percent_of_that_of_many_scales(group):
    weight = random_matrix(128, 512)
    groups = torch.unflatten(weight, 1, (-1, group))
    codes, scales = quantize4(weight, group)
    error = (dequantized(codes, scales) - weight).square().sum()
    best = torch.full(scales.shape, math.inf)
    for step in torch.linspace(0.5, 1.2, 141):
        for end in (-8, 7):
            largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
            scale = (largest * step / end).bfloat16().float()
            best = best.minimum(((groups / scale).round().clamp(-8, 7) * scale - groups).square().sum(2))
    assert error <= 1.005 * best.sum()


@pytest.mark.parametrize("bits", [8, 4])
def test_panels_keep_every_code(bits):
    for rows, columns in SHAPES[bits]:
        low, high = (-127, 128) if bits == 8 else (-8, 8)
        codes = torch.randint(low, high, (rows, columns), generator=torch.Generator().manual_seed(rows)).to(torch.int8)
        panels = to_panels(codes, bits)
        assert panels.shape == (-(-rows // PANEL), columns * bits // 32, PANEL, 4)
        assert panels.nbytes == -(-rows // PANEL) * PANEL * columns * bits // 8
        assert torch.equal(from_panels(panels, bits)[:rows], codes)


@pytest.mark.parametrize(("bits", "group"), BITS_AND_GROUPS)
def test_the_operator_quantizes_as_the_python_code_does(ops, bits, group):
    for rows, columns in [*SHAPES[bits], (160, 512)]:
        weight = random_matrix(rows, columns)
        weight[rows // 2] = 0
        weight_format = Panels(rows, columns, torch.float32, bits, group)
        actual, expected = weight_format.empty(CPU), weight_format.empty(CPU)
        for first in range(0, rows, 64):
            ops.quantize(weight[first : first + 64], actual["weight"], actual["scales"], first)
            part = weight[first : first + 64]
            weight_format.set_codes(expected, first, *(quantize8(part) if bits == 8 else quantize4(part, group)))
        different = (actual["weight"] != expected["weight"]).float().mean()
        assert different <= (0 if bits == 8 else 0.01), (rows, columns)  # equally good scales: either may be chosen
        if bits == 8:
            assert torch.equal(actual["scales"], expected["scales"])
        codes_and_scales = [weight_format.codes(tensors, 0, rows) for tensors in (actual, expected)]
        errors = [(dequantized(*pair) - weight.double()).square().sum() for pair in codes_and_scales]
        assert abs(errors[0] - errors[1]) <= 1e-6 * errors[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 5, 8])
@pytest.mark.parametrize(("bits", "group"), BITS_AND_GROUPS)
def test_a_product_uses_the_quantized_values(ops, bits, group, rows, dtype):
    for out, size in SHAPES[bits]:
        x = random_matrix(rows, size, dtype=dtype, seed=out)
        for bias in (None, random_matrix(out, dtype=dtype)):
            weight_format = Panels(out, size, dtype, bits, group)
            tensors, weight = quantized(weight_format, random_matrix(out, size, seed=size), bias)
            y = ops.linear(x, tensors["weight"], tensors["scales"], bias)
            exact = x.double() @ weight.T + (0 if bias is None else bias.double())
            assert y.dtype == dtype and y.shape == (rows, out)
            assert ((y.double() - exact).abs() <= largest_error(weight_format, x, exact, weight, dtype)).all(), (
                out,
                size,
            )


@pytest.mark.parametrize(("bits", "group"), BITS_AND_GROUPS)
def test_the_largest_sums_are_exact(ops, bits, group):
    size = 1024
    x, weight = torch.full((1, size), 3.0), torch.full((32, size), -1.0)
    weight[1::2] = 1.0
    tensors, numbers = quantized(Panels(32, size, torch.float32, bits, group), weight)
    y = ops.linear(x, tensors["weight"], tensors["scales"], None)
    assert torch.allclose(y.double(), x.double() @ numbers.T, rtol=1e-6)


@pytest.mark.parametrize(("bits", "group"), BITS_AND_GROUPS)
def test_a_row_has_the_same_bits_alone_and_with_any_number_of_threads(ops, bits, group):
    tensors, _ = quantized(Panels(288, 2048, torch.float32, bits, group), random_matrix(288, 2048, seed=1))
    assert_rows_have_their_bits_alone(ops, tensors, 2048)


@pytest.mark.parametrize(("bits", "group"), BITS_AND_GROUPS)
def test_nan_and_infinite_rows_become_nan_and_rows_of_zeros_become_the_bias(ops, bits, group):
    bias = random_matrix(32)
    tensors, _ = quantized(Panels(32, 64, torch.float32, bits, group), random_matrix(32, 64), bias)
    x = random_matrix(4, 64)
    x[0, 63], x[1, 3], x[2] = math.nan, -math.inf, 0
    y = ops.linear(x, tensors["weight"], tensors["scales"], bias)
    assert y[:2].isnan().all() and torch.equal(y[2], bias) and y[3].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group"), BITS_AND_GROUPS)
def test_dequantized_rows_are_the_quantized_values(ops, bits, group, dtype):
    for rows, columns in [*SHAPES[bits], (160, 512)]:
        tensors, weight = quantized(Panels(rows, columns, dtype, bits, group), random_matrix(rows, columns))
        like = torch.empty(0, dtype=dtype)
        for first, last in {(0, rows), (rows // 2 // PANEL * PANEL, rows), (0, min(rows, PANEL + 1))}:
            actual = ops.dequantize(tensors["weight"], tensors["scales"], first, last, like)
            assert torch.equal(actual, weight[first:last].float().to(dtype)), (rows, columns, first, last)


def test_the_operator_refuses_wrong_shapes(ops):
    tensors, _ = quantized(Panels(32, 64, torch.float32, 8), random_matrix(32, 64))
    for x, weight, scales in (
        (random_matrix(1, 60), tensors["weight"], tensors["scales"]),
        (random_matrix(1, 64), tensors["weight"][:, :, :16], tensors["scales"]),
        (random_matrix(1, 64), tensors["weight"], tensors["scales"][:-1].bfloat16()),
        (random_matrix(1, 64), tensors["weight"], random_matrix(65)),
        (random_matrix(kernels.MAX_ROWS + 1, 64), tensors["weight"], tensors["scales"]),
    ):
        with pytest.raises(RuntimeError, match=r"linear|panels"):
            ops.linear(x, weight, scales, None)


def test_nan_and_infinite_weights_make_their_row_nan(ops):
    weight = random_matrix(32, 64)
    weight[3, 5], weight[4, 40] = math.nan, math.inf
    for bits, group in BITS_AND_GROUPS:
        tensors = Panels(32, 64, torch.float32, bits, group).empty(CPU)
        ops.quantize(weight, tensors["weight"], tensors["scales"], 0)
        y = ops.linear(random_matrix(1, 64), tensors["weight"], tensors["scales"], None)
        assert y[0, 3:5].isnan().all() and y[0, :3].isfinite().all() and y[0, 5:].isfinite().all()


@pytest.mark.parametrize(("bits", "group"), BITS_AND_GROUPS)
def test_weights_whose_scale_has_no_inverse_become_zero(ops, bits, group):
    weight = torch.zeros(32, 64)
    weight[:, 0] = 1e-39
    tensors, numbers = quantized(Panels(32, 64, torch.float32, bits, group), weight)
    ops.quantize(weight, tensors["weight"], tensors["scales"], 0)
    assert numbers.eq(0).all()
    assert ops.linear(torch.ones(1, 64), tensors["weight"], tensors["scales"], None).eq(0).all()
