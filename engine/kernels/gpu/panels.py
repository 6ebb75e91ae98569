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

    4 bits at 4.8 TB/s are 9e12 weights/s, for each of which a GPU has time for three instructions; so even a single row
    is multiplied by tensor cores, of which eight columns are the least. A word of two or four pairs of codes becomes
    pairs of 16-bit numbers in four instructions each (`_codes`), and a pair is what a lane holds of the left operand:
    two neighbours along k. So k goes through the lines of a block and, in each, the two halves of a word. The order of
    the columns of x must match; it is read in words of four columns, which are taken apart in the same way.
    Tiles have a dimension for the warps, and another of 1, because Triton then converts the words, not the numbers, to
    the layout of the operand, and copies the words to shared memory in units of 16 bytes (Triton 3.6 and 3.9).
    """
    panel, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, n = tl.arange(0, 32), tl.arange(0, N)
    lane = tl.arange(0, WARPS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    width: tl.constexpr = 4 if GROUP == 0 else 8  # columns of a line
    step: tl.constexpr = 2 if GROUP == 0 else 1  # a pair: columns 0 1 or 2 3 of 8 bits, 0 2 or 1 3 of four of 4 bits
    groups = 0 if GROUP == 0 else lines * 8 // GROUP
    dtype: tl.constexpr = x.dtype.element_ty
    words = weight.to(tl.pointer_type(tl.int32)) + panel * lines * 32 + row[None, :, None, None]
    row_scales = scales + panel * groups * 32 + row[None, :, None, None]
    table_scales = scales + panel * groups * 32 + row[None, :]
    columns = x + (n * (lines * width))[None, None, None, :]
    total = tl.zeros([WARPS, 32, N], tl.float32)
    for start in range(split * lines_per_split, min((split + 1) * lines_per_split, lines), WARPS * BLOCK):
        line = start + lane
        left, right = (line < lines)[:, None, :, None], (line < lines)[:, :, None, None]
        word = tl.load(words + line[:, None, :, None] * 32, mask=left, other=0)
        if IS_TABLE:
            group = start // BLOCK + tl.arange(0, WARPS)[:, None]
            group_scale = tl.load(table_scales + group * 32, mask=group < groups, other=0)
            whole, total = total, tl.zeros([WARPS, 32, N], tl.float32)
        elif GROUP > 0:
            scale = tl.load(row_scales + (line * 8 // GROUP)[:, None, :, None] * 32, mask=left, other=0)
        for quarter in tl.static_range(width // 4):
            quad = columns + (line * width + quarter * 4)[:, :, None, None]
            mask = right & (n < count)[None, None, None, :]
            if dtype != tl.float32:
                quads = tl.load(quad.to(tl.pointer_type(tl.int64)), mask=mask, other=0)
            for pair in tl.static_range(2):
                if dtype == tl.float32:
                    low_x = tl.load(quad + pair * step, mask=mask, other=0)
                    high_x = tl.load(quad + (pair * step + 3 - step), mask=mask, other=0)
                else:
                    low_x = (quads >> (16 * pair * step)).to(tl.int16).to(dtype, bitcast=True)
                    high_x = (quads >> (16 * (pair * step + 3 - step))).to(tl.int16).to(dtype, bitcast=True)
                codes = word >> (pair * 8 + quarter * 4)
                if IS_TABLE:
                    low, high = _entry(scales + table, codes).to(dtype), _entry(scales + table, codes >> 16).to(dtype)
                elif GROUP == 0:
                    low, high = _bytes(codes, dtype)
                else:
                    low, high = _codes(codes, dtype)
                    low, high = _product(low, scale), _product(high, scale)
                weights = tl.reshape(tl.join(low, high), [WARPS, 32, 2 * BLOCK])
                values = tl.reshape(tl.permute(tl.join(low_x, high_x), (0, 1, 2, 4, 3)), [WARPS, 2 * BLOCK, N])
                total = tl.dot(weights, values, total, input_precision="ieee")
        if IS_TABLE:
            total = whole + total * group_scale[:, :, None]
    y = tl.sum(total, 0)
    r = panel * 32 + row
    if GROUP == 0:
        y *= tl.load(scales + r, mask=r < rows, other=0)[:, None]
    if HAS_BIAS:
        y += tl.load(bias + r, mask=r < rows, other=0).to(tl.float32)[:, None]
    place = (split.to(tl.int64) * count + n[None, :]) * rows + r[:, None]
    tl.store(out + place, y.to(out.dtype.element_ty), mask=(r < rows)[:, None] & (n < count)[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _codes(word, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """The 4-bit codes in bits 0 and 16 of a word, minus 8.

    With these bits as their last, bfloat16 numbers from 128 and float16 numbers from 1024 have steps of 1.
    """
    if dtype == tl.bfloat16:
        pair = word & 0x000F000F | 0x43004300
        low, high = _halves(pair, dtype)
        return _difference(low, 136.0), _difference(high, 136.0)
    elif dtype == tl.float16:
        pair = word & 0x000F000F | 0x64006400
        low, high = _halves(pair, dtype)
        return _difference(low, 1032.0), _difference(high, 1032.0)
    else:
        return ((word & 15) - 8).to(dtype), ((word >> 16 & 15) - 8).to(dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _bytes(word, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bytes 0 and 2 of a word, signed: the last seven bits minus 128 times the first.

    bfloat16 has no eight bits after its first, but bit 7 makes 256 of 128.
    """
    if dtype == tl.float32:
        return (word << 24 >> 24).to(dtype), (word << 8 >> 24).to(dtype)
    else:
        start: tl.constexpr = 0x43004300 if dtype == tl.bfloat16 else 0x64006400  # 128 or 1024, as in `_codes`
        low, high = _halves(word & 0x007F007F | start, dtype)
        low_sign, high_sign = _halves(word & 0x00800080 | start, dtype)
        return _difference(low, low_sign.to(tl.float32)), _difference(high, high_sign.to(tl.float32))


@triton.jit
def _difference(a, b):
    return (a.to(tl.float32) - b).to(a.dtype)


@triton.jit
def _product(a, b):
    return (a.to(tl.float32) * b.to(a.dtype).to(tl.float32)).to(a.dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _halves(pair, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """The two 16-bit numbers in a word."""
    return pair.to(tl.int16).to(dtype, bitcast=True), (pair >> 16).to(tl.int16).to(dtype, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def _entry(table, word):  # type: ignore[no-untyped-def]
    """Entries of a table for the 4-bit codes in bit 0 of words."""
    return tl.load(table + (word & 15))


@triton.jit  # type: ignore[untyped-decorator]
def _merge(sums, bias, out, size, rows, splits, HAS_BIAS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Add the sums of all parts in their order: [splits, M, rows] -> [M, rows], of `size` elements."""
    i = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    mask = i < size
    y = tl.load(sums + i, mask=mask, other=0)
    for split in range(1, splits):
        y += tl.load(sums + split.to(tl.int64) * size + i, mask=mask, other=0)
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
        values = (_entry(scales + table, code) if IS_TABLE else ((code & 15) - 8).to(tl.float32)) * scale
    index = (place.to(tl.int64) * lines + line[None, :])[:, :, None] * width + column
    tl.store(out + index, values.to(out.dtype.element_ty), mask=mask[:, :, None])
