"""Attention over cached keys in C++, compared with float64, on every instruction set that this machine supports."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

DTYPES = [torch.float32, torch.bfloat16]
# float32: sums of a thousand products; bfloat16: rounding of the result.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}

# New tokens, and pieces (segment, length) of each row: several segments, a prefix shared by rows of different lengths,
# some of which share a tile, a row without a past, and blocks of 64 keys that straddle segments.
CAPACITIES = [300, 132, 64, 40]
ROWS = [
    (17, [(0, 200), (1, 30), (2, 17)]),
    (70, [(0, 300)]),
    (1, [(0, 200), (3, 5)]),
    (4, [(0, 200), (3, 40)]),
    (2, [(0, 129), (1, 132)]),
    (1, [(2, 1)]),
]

Row = tuple[int, list[tuple[int, int]]]


def draw(groups: int, queries: int, size: int, dtype: torch.dtype, rows: list[Row] = ROWS, seed: int = 0):  # type: ignore[no-untyped-def]
    """Random queries [N, H, D] of the rows' new tokens, and segments of two layers."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 2, groups, capacity, size) for capacity in CAPACITIES]
    segments = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    tokens = sum(count for count, _ in rows)
    return torch.randn(tokens, groups * queries, size, generator=generator).to(dtype), segments


def attend(ops: Any, q: torch.Tensor, segments: list[torch.Tensor], rows: list[Row], window: int = 0, cap: float = 0.0):  # type: ignore[no-untyped-def]
    """The kernel, on layer 1."""
    counts = [number for count, pieces in rows for number in (count, len(pieces))]
    pieces = [number for _, pieces in rows for piece in pieces for number in piece]
    return ops.flash_attention(q, segments, counts, pieces, 1, window, q.shape[-1] ** -0.5, cap)


def exact(q: torch.Tensor, segments: list[torch.Tensor], rows: list[Row], window: int = 0, cap: float = 0.0):  # type: ignore[no-untyped-def]
    """The same in float64, row by row."""
    results, tokens = [], 0
    for count, pieces in rows:
        keys, values = torch.cat([segments[i][1, :, :, :length] for i, length in pieces], dim=2).double()
        grouped = q[tokens : tokens + count].double().unflatten(1, (len(keys), -1))  # [n, groups, queries, D]
        scores = torch.einsum("ngqd,gtd->gqnt", grouped, keys) * q.shape[-1] ** -0.5
        scores = cap * torch.tanh(scores / cap) if cap else scores
        total = keys.shape[1]
        distance = torch.arange(total - count, total)[:, None] - torch.arange(total)
        hidden = (distance < 0) | (distance >= window) if window else distance < 0
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        results.append(torch.einsum("gqnt,gtd->ngqd", weights, values).flatten(1, 2))
        tokens += count
    return torch.cat(results)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "groups", "queries"),
    [(1, 2, 3), (5, 1, 8), (16, 1, 7), (64, 2, 3), (80, 1, 8), (96, 2, 1), (128, 1, 7), (256, 1, 1)],
)
def test_flash_attention_equals_float64(ops, dtype, size, groups, queries):
    q, segments = draw(groups, queries, size, dtype)
    for window, cap in ((0, 0.0), (50, 0.0), (0, 5.0), (9, 2.0)):
        out, expected = attend(ops, q, segments, ROWS, window, cap), exact(q, segments, ROWS, window, cap)
        assert out.dtype == dtype and out.shape == q.shape
        assert (out.double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max(), (window, cap)


@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_may_be_a_slice_of_a_product(ops, dtype):
    q, segments = draw(2, 3, 16, dtype)
    for wide in (torch.cat([q, q], 1)[:, 6:], torch.stack([q, q], -1)[..., 0]):
        assert torch.equal(attend(ops, wide, segments, ROWS), attend(ops, q, segments, ROWS))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [80, 64])
@pytest.mark.parametrize("window", [0, 70])
def test_bits_depend_neither_on_threads_nor_on_other_rows(ops, dtype, window, size):
    q, segments = draw(2, 3, size, dtype)
    together = attend(ops, q, segments, ROWS, window, 30.0)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(attend(ops, q, segments, ROWS, window, 30.0), together)
            alone = [
                attend(ops, part, segments, [row], window, 30.0)
                for part, row in zip(q.split([count for count, _ in ROWS]), ROWS, strict=True)
            ]
            assert torch.equal(torch.cat(alone), together)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("window", [0, 70, 71])
def test_bits_depend_neither_on_chunks_nor_on_segments(ops, dtype, window, size):
    whole: list[Row] = [(300, [(0, 300)])]
    q, segments = draw(2, 3, size, dtype, whole)
    once = attend(ops, q, segments, whole, window)
    ends = [1, 64, 150, 151, 300]
    starts = [0, *ends[:-1]]
    chunks = [
        attend(ops, q[start:end], segments, [(end - start, [(0, end)])], window)
        for start, end in zip(starts, ends, strict=True)
    ]
    assert torch.equal(torch.cat(chunks), once)
    pieces = [segments[0][:, :, :, start:end].contiguous() for start, end in zip(starts, ends, strict=True)]
    cut: list[Row] = [(300, [(i, piece.shape[3]) for i, piece in enumerate(pieces)])]
    assert torch.equal(attend(ops, q, pieces, cut, window), once)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sixteen_short_rows_after_a_shared_prefix_equal_float64(ops, dtype):
    rows: list[Row] = [
        (1 + i % 4, [(0, 150 + 37 * (i // 8)), (1 + i % 2, 8 * (i // 2) + 1 + i % 4)]) for i in range(16)
    ]
    q, segments = draw(1, 3, 64, dtype, rows)
    expected = exact(q, segments, rows)
    assert (attend(ops, q, segments, rows).double() - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 32])
def test_weights_are_those_of_the_largest_scores(ops, dtype, size):
    """Scores of several hundred, whose exponentials overflow, and which grow from block to block."""
    row: list[Row] = [(1, [(0, 300)])]
    q, segments = draw(1, 1, size, dtype, row)
    segments[0][1, 0] = torch.linspace(-400, 400, 300)[:, None].to(dtype)
    q.fill_(1)
    expected = exact(q, segments, row)
    assert (attend(ops, q, segments, row).double() - expected).abs().max() <= 3 * TOLERANCE[
        dtype
    ] * expected.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("size", [16, 64])
def test_nan_and_infinity_reach_the_queries_that_see_them_and_no_other_row(ops, dtype, value, size):
    rows: list[Row] = [(2, [(0, 200), (1, 2)]), (3, [(0, 200), (2, 3)]), (1, [(0, 200), (3, 1)])]
    q, segments = draw(1, 3, size, dtype, rows)
    clean = attend(ops, q, segments, rows)
    segments[2][1, 1, 0, 1] = value  # the value of the second row's second new token
    out = attend(ops, q, segments, rows)
    assert torch.equal(out[:2], clean[:2]) and torch.equal(out[5:], clean[5:])
    assert not out[3:5].isfinite().any()
    segments[2][1, 1, 0, 1], q[5] = 0.0, value
    out = attend(ops, q, segments, rows)
    assert torch.equal(out[:3], clean[:3]) and not out[5].isfinite().any()


def test_wrong_shapes_are_refused(ops):
    q, segments = draw(2, 3, 16, torch.float32)
    for rows in (ROWS[1:], [*ROWS[:5], (1, [(2, 65)])], [*ROWS[:5], (1, [(4, 1)])]):
        with pytest.raises(RuntimeError, match="keys: "):
            attend(ops, q, segments, rows)
    with pytest.raises(RuntimeError, match="a segment of"):
        attend(ops, q, [segment.bfloat16() for segment in segments], ROWS)
