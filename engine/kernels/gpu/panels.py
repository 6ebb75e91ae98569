"""Weights in panels on an NVIDIA GPU, in Triton: products with up to 32 rows of x, dequantization, and look-up of rows.

The layout of panels: engine/quant/panels.py. The four bytes that a row has in a line are read as one 32-bit word: a
line is 32 words, and a program reads whole lines, so every read of the weight is coalesced. The formats:

    int8     weight int8, scales float32 [rows]
    int4     weight uint8, scales bfloat16 [panels, groups, 32]
    tables   weight uint8, scales float32 [panels * groups * 32 + 16]: a code c stands for entry c of the last 16
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu.codes import entry, two_numbers
from engine.kernels.gpu.launch import launch

WARPS = 8  # of a program of `linear`: each multiplies every eighth block of 8 lines; the sums are added at the end
BLOCK = 8
STAGES = 3  # blocks that are being read or multiplied; 1 where a smaller GPU has not enough shared memory (99 kB)
# Lines that are worth a second kernel, which adds the sums of several programs: it takes 1 to 2 µs, as a program does
# for so many lines (64 kB).
SPLIT_LINES = 512
PROGRAMS = 128  # wanted in all: about one per multiprocessor of a large GPU
DEQUANTIZED_LINES = 32  # of a panel that a program dequantizes, or of a row that is looked up
TABLE, TABLE_GROUP = 16, 64  # entries; columns per scale
ALIGNMENT = 4  # elements of x: it is read in 64-bit words


def linear(x: Tensor, weight: Tensor, scales: Tensor, rows: int, bias: Tensor | None = None) -> Tensor:
    """x [M, k], 1 <= M <= 32, times a weight in panels [panels, lines, 32, 4], plus bias [rows] -> [M, rows] like x.

    The weight is read once. Sums are float32, and their order depends only on the shape of the weight: not on M, nor
    on the other rows of x. As in a product with the dequantized matrix, weights are rounded to the dtype of x.
    """
    panels, lines = weight.shape[:2]
    x = x.contiguous()
    if x.storage_offset() % ALIGNMENT:
        x = x.clone()
    count, block, is_table = len(x), BLOCK * WARPS, _is_table(weight, scales)
    columns = max(8, triton.next_power_of_2(count))
    splits = max(1, min(PROGRAMS // panels, lines // SPLIT_LINES))
    lines_per_split = -(-lines // splits // block) * block
    splits = -(-lines // lines_per_split)
    out = torch.empty(count, rows, dtype=x.dtype, device=x.device)
    sums = out if splits == 1 else torch.empty(splits, count, rows, device=x.device)
    launch(
        _linear,
        (panels, splits),
        x,
        weight,
        scales,
        out if bias is None else bias,
        sums,
        count,
        rows,
        lines,
        lines_per_split,
        scales.numel() - TABLE,
        GROUP=_group(weight, scales),
        IS_TABLE=is_table,
        HAS_BIAS=bias is not None and splits == 1,
        N=columns,
        WARPS=WARPS,
        num_warps=WARPS,
        num_stages=1 if x.dtype == torch.float32 or (is_table and columns > 16) else STAGES,
    )
    if splits > 1:
        grid, has_bias = (-(-out.numel() // 1024),), bias is not None
        launch(_merge, grid, sums, bias if has_bias else out, out, out.numel(), rows, splits, HAS_BIAS=has_bias)
    return out


def dequantize(weight: Tensor, scales: Tensor, first: int, last: int, dtype: torch.dtype) -> Tensor:
    """Rows `first` (a multiple of 32) to `last` of a weight in panels [panels, lines, 32, 4] -> [last - first, k]."""
    lines, is_bytes = weight.shape[1], weight.dtype == torch.int8
    out = torch.empty(last - first, lines * (4 if is_bytes else 8), dtype=dtype, device=weight.device)
    grid = (-(-lines // DEQUANTIZED_LINES), -(-(last - first) // 32))
    sizes = (first, last, lines, scales.numel() - TABLE)
    constants = {"GROUP": _group(weight, scales), "IS_TABLE": _is_table(weight, scales), "LINES": DEQUANTIZED_LINES}
    if last > first:
        launch(_dequantize, grid, weight, scales, out, *sizes, **constants)
    return out


def lookup(weight: Tensor, scales: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows `ids` [N] (int64) of a weight in panels [panels, lines, 32, 4] -> [N, k]."""
    lines, is_bytes = weight.shape[1], weight.dtype == torch.int8
    out = torch.empty(len(ids), lines * (4 if is_bytes else 8), dtype=dtype, device=weight.device)
    grid, sizes = (len(ids), -(-lines // DEQUANTIZED_LINES)), (lines, scales.numel() - TABLE)
    constants = {"GROUP": _group(weight, scales), "IS_TABLE": _is_table(weight, scales), "LINES": DEQUANTIZED_LINES}
    if len(ids):
        launch(_lookup, grid, weight, scales, ids.contiguous(), out, *sizes, **constants)
    return out


def _is_table(weight: Tensor, scales: Tensor) -> bool:
    return weight.dtype == torch.uint8 and scales.dim() == 1


def _group(weight: Tensor, scales: Tensor) -> int:
    """4-bit columns per scale; 0 for 8 bits, which have one scale per row."""
    if weight.dtype == torch.int8:
        return 0
    return TABLE_GROUP if scales.dim() == 1 else weight.shape[1] * 8 // scales.shape[1]


@triton.jit(do_not_specialize=["count"])  # type: ignore[untyped-decorator]
def _linear(  # type: ignore[no-untyped-def]
    x, weight, scales, bias, out, count, rows, lines, lines_per_split, table,
    GROUP: tl.constexpr, IS_TABLE: tl.constexpr, HAS_BIAS: tl.constexpr, N: tl.constexpr, WARPS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One panel times all rows of x, over one part of the lines.

    At 4.8 TB/s, 4-bit weights come at 9e12 a second, and an H200 has time for about three instructions for each. So
    even a single row of x is multiplied by the tensor cores, which compute with at least eight columns at no cost, and
    the instructions only turn codes into 16-bit numbers, two at a time (codes.py): 3.7 a weight in all.

    A warp multiplies [32 rows, 8 lines] of the panel four times (8 bits: twice), each time two codes of every word, so
    k is 16. A tensor core wants some rows of the weight in the registers of lane 4 i + q, depending on i, and some k,
    depending on q. Any order of rows and k will do that the result and x have, too. So a lane gets rows 4 i + j (j < 4)
    of lines 4 p + q (p < 2): then the copy to shared memory and the load from it are of 16 bytes per lane, side by side
    (the order of words is p i q j). The order of k is q, p, and the half of a word.

    Tiles are loaded as one-dimensional tensors, which Triton can divide among lanes in one way only. From the operands
    of the dot it follows `reshape`, `permute`, `join` and arithmetic back to the loaded words, so that these, and not
    the numbers, go through shared memory. (It stops at masks of bits that are arguments instead of constants.)
    """
    panel, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    width: tl.constexpr = 4 if GROUP == 0 else 8  # columns of a line
    step: tl.constexpr = 2 if GROUP == 0 else 1  # codes of a pair: columns 0 1 and 2 3 of 8 bits, 0 2 and 1 3 of 4
    dtype: tl.constexpr = x.dtype.element_ty
    # x is read in words of four columns, of all columns of a line at once; float32 one column at a time.
    per_line: tl.constexpr = 1 if dtype == tl.float32 else width // 4
    stride: tl.constexpr = width if dtype == tl.float32 else per_line
    source = x if dtype == tl.float32 else x.to(tl.pointer_type(tl.int64))
    groups = 0 if GROUP == 0 else lines * 8 // GROUP
    i = tl.arange(0, WARPS * 256)
    line, row = i // 128 * 4 + i // 4 % 4, i // 16 % 8 * 4 + i % 4
    words = weight.to(tl.pointer_type(tl.int32)) + panel * lines * 32 + line * 32 + row
    row_scales = scales + panel * groups * 32 + (0 if GROUP == 0 else line * 8 // GROUP) * 32 + row
    i = tl.arange(0, WARPS * 8 * N * per_line)
    line_of_x, row_of_x = i // (4 * per_line * N) * 4 + i // per_line % 4, i // (4 * per_line) % N
    columns = source + row_of_x * (lines * stride) + line_of_x * stride + i % per_line
    row = tl.arange(0, 32) % 8 * 4 + tl.arange(0, 32) // 8  # of the result
    block_scales = scales + panel * groups * 32 + tl.arange(0, WARPS)[:, None] * 32 + row[None, :]
    total = tl.zeros([WARPS, 32, N], tl.float32)
    for start in range(split * lines_per_split, min((split + 1) * lines_per_split, lines), WARPS * 8):
        word = _left(tl.load(words + start * 32, mask=line < lines - start, other=0), WARPS)
        scale = 1.0
        if IS_TABLE:  # a block of lines is a group: its sum is scaled
            mask = tl.arange(0, WARPS)[:, None] < groups - start // 8
            block_scale = tl.load(block_scales + start // 8 * 32, mask=mask, other=0)
            before, total = total, tl.zeros([WARPS, 32, N], tl.float32)
        elif GROUP > 0:
            scale = tl.load(row_scales + start * 8 // GROUP * 32, mask=line < lines - start, other=0)
            scale = _left(scale.to(dtype), WARPS)
        mask = (row_of_x < count) & (line_of_x < lines - start)
        first, second = _four_columns(columns + start * stride, mask, dtype, N, WARPS, per_line)
        for half in tl.static_range(width // 4):
            four = first if half == 0 else second
            for pair in tl.static_range(2):
                place = columns + start * stride + half * 4
                low_x = _column(place, four, pair * step, mask, dtype, N, WARPS)
                high_x = _column(place, four, pair * step + 3 - step, mask, dtype, N, WARPS)
                low, high = two_numbers(word >> (pair * 8 + half * 4), scale, scales + table, GROUP, IS_TABLE, dtype)
                left = tl.reshape(tl.join(low, high), [WARPS, 32, 16])
                right = tl.reshape(tl.permute(tl.join(low_x, high_x), (0, 3, 1, 4, 2)), [WARPS, 16, N])
                total = tl.dot(left, right, total, input_precision="ieee")
        if IS_TABLE:
            total = before + total * block_scale[:, :, None]
    y, n, row = tl.sum(total, 0), tl.arange(0, N), panel * 32 + row
    if GROUP == 0:
        y *= tl.load(scales + row, mask=row < rows, other=0)[:, None]
    if HAS_BIAS:
        y += tl.load(bias + row, mask=row < rows, other=0).to(tl.float32)[:, None]
    index = (split.to(tl.int64) * count + n[None, :]) * rows + row[:, None]
    tl.store(out + index, y.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (n < count)[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _left(tile, WARPS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """A tile of words, or of a scale for each -> [WARPS, 32 rows, 8 along k]."""
    return tl.reshape(tl.permute(tl.reshape(tile, [WARPS, 2, 8, 4, 4]), (0, 4, 2, 3, 1)), [WARPS, 32, 8])


@triton.jit  # type: ignore[untyped-decorator]
def _four_columns(place, mask, dtype: tl.constexpr, N: tl.constexpr, WARPS: tl.constexpr, PER_LINE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """The bits of columns 0 to 3 and, if `PER_LINE` is 2, 4 to 7 of all lines [WARPS, 2, N, 4], of 16-bit x."""
    first, second = 0, 0
    if dtype != tl.float32:
        four = tl.load(place, mask=mask, other=0)
        if PER_LINE == 2:
            first, second = tl.split(tl.reshape(four, [WARPS, 2, N, 4, 2]))
        else:
            first = tl.reshape(four, [WARPS, 2, N, 4])
    return first, second


@triton.jit  # type: ignore[untyped-decorator]
def _column(place, four, column: tl.constexpr, mask, dtype: tl.constexpr, N: tl.constexpr, WARPS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """One of four columns of all lines [WARPS, 2, N, 4]: from their bits, or from memory if x is float32."""
    if dtype == tl.float32:
        values = tl.reshape(tl.load(place + column, mask=mask, other=0), [WARPS, 2, N, 4])
    else:
        values = (four >> (16 * column)).to(tl.int16).to(dtype, bitcast=True)
    return values


@triton.jit  # type: ignore[untyped-decorator]
def _merge(sums, bias, out, size, rows, splits, HAS_BIAS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Add the sums of all parts in their order: [splits, M, rows] -> [M, rows], of `size` elements."""
    i = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    mask = i < size
    y = tl.load(sums + i, mask=mask, other=0)
    for split in range(1, splits):
        y += tl.load(sums + split * size + i, mask=mask, other=0)
    if HAS_BIAS:
        y += tl.load(bias + i % rows, mask=mask, other=0).to(tl.float32)
    tl.store(out + i, y.to(out.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _dequantize(  # type: ignore[no-untyped-def]
    weight, scales, out, first, last, lines, table,
    GROUP: tl.constexpr, IS_TABLE: tl.constexpr, LINES: tl.constexpr,  # noqa: N803
):  # fmt: skip
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    row = first + tl.program_id(1) * 32 + tl.arange(0, 32)
    mask = (row < last)[:, None] & (line < lines)[None, :]
    _store_rows(weight, scales, out, (row - first)[:, None], row[:, None], line, mask, lines, table, GROUP, IS_TABLE)


@triton.jit  # type: ignore[untyped-decorator]
def _lookup(  # type: ignore[no-untyped-def]
    weight, scales, ids, out, lines, table,
    GROUP: tl.constexpr, IS_TABLE: tl.constexpr, LINES: tl.constexpr,  # noqa: N803
):  # fmt: skip
    line = tl.program_id(1) * LINES + tl.arange(0, LINES)
    place = tl.program_id(0)
    row = tl.load(ids + place)
    mask = (line < lines)[None, :]
    _store_rows(weight, scales, out, place, row, line, mask, lines, table, GROUP, IS_TABLE)


@triton.jit  # type: ignore[untyped-decorator]
def _store_rows(  # type: ignore[no-untyped-def]
    weight, scales, out, place, row, line, mask, lines, table,
    GROUP: tl.constexpr, IS_TABLE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Dequantize lines [L] of rows [R, 1] or one row into rows `place` of `out`; mask [R, L] or [1, L]."""
    width: tl.constexpr = 4 if GROUP == 0 else 8
    column = tl.arange(0, width)[None, None, :]
    panel, row_of_panel = (row // 32).to(tl.int64), row % 32
    word = tl.load(
        weight.to(tl.pointer_type(tl.int32)) + (panel * lines + line[None, :]) * 32 + row_of_panel, mask=mask, other=0
    )[:, :, None]
    if GROUP == 0:
        scale = tl.load(scales + row + line[None, :] * 0, mask=mask, other=0)[:, :, None]
        values = (word << (24 - 8 * (column // 2 + column % 2 * 2)) >> 24).to(tl.float32) * scale
    else:
        group = panel * (lines * 8 // GROUP) + line[None, :] * 8 // GROUP
        scale = tl.load(scales + group * 32 + row_of_panel, mask=mask, other=0).to(tl.float32)[:, :, None]
        code = word >> (column % 4 * 8 + column // 4 * 4)
        values = (entry(scales + table, code) if IS_TABLE else ((code & 15) - 8).to(tl.float32)) * scale
    index = (place.to(tl.int64) * lines + line[None, :])[:, :, None] * width + column
    tl.store(out + index, values.to(out.dtype.element_ty), mask=mask[:, :, None])
