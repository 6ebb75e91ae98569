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

WARPS = 8  # of a program of `linear`: each multiplies every eighth block of lines, and the sums are added at the end
BLOCK = 8  # lines: two columns each give the 16 that a tensor core multiplies at once
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
        BLOCK=BLOCK,
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
    GROUP: tl.constexpr, IS_TABLE: tl.constexpr, HAS_BIAS: tl.constexpr, N: tl.constexpr,  # noqa: N803
    WARPS: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One panel times all rows of x, over one part of the lines.

    At 4.8 TB/s, 4-bit weights come at 9e12 a second, and a GPU of 132 multiprocessors has time for three instructions
    for each of them. So even a single row of x is multiplied by the tensor cores, whose products have at least eight
    columns, and the instructions only turn codes into 16-bit numbers, two at a time: one shift, mask and bitwise or
    makes two codes in the halves of a word two numbers (`_codes`), and one instruction each subtracts and scales two.
    Two such numbers of a row are neighbours along k in the operand of a tensor core. So k runs through the lines of a
    block and, within a line, through the halves of the word; x is read in words of four columns, and taken apart alike.
    (Tiles have one dimension for the warps, and another of size 1: with that Triton 3.6 and 3.9 convert the words, not
    the numbers, to the layout of the operand, and copy 16 bytes at a time to shared memory. A mask that is an argument,
    rather than a constant, prevents the former.)
    """
    panel, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, n = tl.arange(0, 32), tl.arange(0, N)
    line_of_warp = tl.arange(0, WARPS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    width: tl.constexpr = 4 if GROUP == 0 else 8  # columns of a line
    step: tl.constexpr = 2 if GROUP == 0 else 1  # halves of a word: columns 0 1 and 2 3 of 8 bits, 0 2 and 1 3 of 4
    groups = 0 if GROUP == 0 else lines * 8 // GROUP
    dtype: tl.constexpr = x.dtype.element_ty
    words = weight.to(tl.pointer_type(tl.int32)) + panel * lines * 32 + row[None, :, None, None]
    row_scales = scales + panel * groups * 32 + row[None, :, None, None]
    block_scales = scales + panel * groups * 32 + row[None, :]
    columns = x + (n * (lines * width))[None, None, None, :]
    total = tl.zeros([WARPS, 32, N], tl.float32)
    for start in range(split * lines_per_split, min((split + 1) * lines_per_split, lines), WARPS * BLOCK):
        line = start + line_of_warp
        left, right = (line < lines)[:, None, :, None], (line < lines)[:, :, None, None]
        word = tl.load(words + line[:, None, :, None] * 32, mask=left, other=0)
        scale = 1.0
        if IS_TABLE:  # a block is a group: its sum is scaled
            group = start // BLOCK + tl.arange(0, WARPS)[:, None]
            block_scale = tl.load(block_scales + group * 32, mask=group < groups, other=0)
            before, total = total, tl.zeros([WARPS, 32, N], tl.float32)
        elif GROUP > 0:
            scale = tl.load(row_scales + (line * 8 // GROUP)[:, None, :, None] * 32, mask=left, other=0).to(dtype)
        for quarter in tl.static_range(width // 4):
            place = columns + (line * width + quarter * 4)[:, :, None, None]
            mask = right & (n < count)[None, None, None, :]
            four = 0 if dtype == tl.float32 else tl.load(place.to(tl.pointer_type(tl.int64)), mask=mask, other=0)
            for pair in tl.static_range(2):
                low_x = _column_of_x(place, four, pair * step, mask, dtype)
                high_x = _column_of_x(place, four, pair * step + 3 - step, mask, dtype)
                codes = word >> (pair * 8 + quarter * 4)
                low, high = two_numbers(codes, scale, scales + table, GROUP, IS_TABLE, dtype)
                left_operand = tl.reshape(tl.join(low, high), [WARPS, 32, 2 * BLOCK])
                pairs_of_x = tl.permute(tl.join(low_x, high_x), (0, 1, 2, 4, 3))
                right_operand = tl.reshape(pairs_of_x, [WARPS, 2 * BLOCK, N])
                total = tl.dot(left_operand, right_operand, total, input_precision="ieee")
        if IS_TABLE:
            total = before + total * block_scale[:, :, None]
    y = tl.sum(total, 0)
    r = panel * 32 + row
    if GROUP == 0:
        y *= tl.load(scales + r, mask=r < rows, other=0)[:, None]
    if HAS_BIAS:
        y += tl.load(bias + r, mask=r < rows, other=0).to(tl.float32)[:, None]
    index = (split.to(tl.int64) * count + n[None, :]) * rows + r[:, None]
    tl.store(out + index, y.to(out.dtype.element_ty), mask=(r < rows)[:, None] & (n < count)[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _column_of_x(place, four, column: tl.constexpr, mask, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """One of four columns that begin at `place`; if they are 16-bit numbers, `four` are their bits."""
    if dtype == tl.float32:
        return tl.load(place + column, mask=mask, other=0)
    return (four >> (16 * column)).to(tl.int16).to(dtype, bitcast=True)


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
