"""Weights in panels on an NVIDIA GPU, in Triton: a few rows times a matrix, and dequantization of a matrix.

The layout of panels: engine/quant/panels.py. Triton comes with torch for CUDA, so this file is imported only there;
without it PyTorch's operators compute the same.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu.launch import launch

LINES = 32  # lines of a panel that one program reads at a time
MIN_PROGRAMS = 1024  # so that every multiprocessor of a large GPU has several


def linear(x: Tensor, weight: Tensor, scales: Tensor, rows: int) -> Tensor:
    """x [M, k], M >= 1, times a weight in panels [panels, lines, 32, 4] -> [M, rows], float32.

    A program sums one panel over one part of the lines for one row of x; the parts are added at the end.
    """
    panels, lines = weight.shape[:2]
    splits = max(1, min(-(-MIN_PROGRAMS // (panels * len(x))), lines // LINES))
    lines_per_split = -(-lines // splits // LINES) * LINES
    splits = -(-lines // lines_per_split)
    out = torch.empty(splits, len(x), rows, device=x.device)
    group = _group(weight, scales)
    grid = (panels, splits, len(x))
    launch(_linear, grid, x.contiguous(), weight, scales, out, rows, lines, lines_per_split, GROUP=group, LINES=LINES)
    return out.sum(0) if splits > 1 else out[0]


def dequantize(weight: Tensor, scales: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """A weight in panels [panels, lines, 32, 4] -> [rows, k]."""
    panels, lines = weight.shape[:2]
    group = _group(weight, scales)
    out = torch.empty(rows, lines * (4 if group == 0 else 8), dtype=dtype, device=weight.device)
    launch(_dequantize, (panels, -(-lines // LINES)), weight, scales, out, rows, lines, GROUP=group, LINES=LINES)
    return out


def _group(weight: Tensor, scales: Tensor) -> int:
    """4-bit columns per scale; 0 for 8 bits, which have one scale per row."""
    return 0 if weight.dtype == torch.int8 else weight.shape[1] * 8 // scales.shape[1]


@triton.jit  # type: ignore[untyped-decorator]
def _linear(x, weight, scales, out, rows, lines, lines_per_split, GROUP: tl.constexpr, LINES: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    panel, split, m = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    row, byte = tl.arange(0, 32), tl.arange(0, 4)
    column = byte // 2 + byte % 2 * 2 if GROUP == 0 else byte  # column of a byte, or of its lower half
    width: tl.constexpr = 4 if GROUP == 0 else 8  # columns of a line
    total = tl.zeros([32], tl.float32)
    for start in range(split * lines_per_split, min((split + 1) * lines_per_split, lines), LINES):
        line = start + tl.arange(0, LINES)
        mask = line < lines
        code_index = (panel * lines + line)[:, None, None] * 128 + row[None, :, None] * 4 + byte[None, None, :]
        codes = tl.load(weight + code_index, mask=mask[:, None, None], other=0).to(tl.int32)
        columns = x + m * lines * width + line[:, None] * width + column[None, :]
        low = tl.load(columns, mask=mask[:, None], other=0).to(tl.float32)
        if GROUP == 0:
            total += tl.sum(tl.sum(codes.to(tl.float32) * low[:, None, :], axis=2), axis=0)
        else:
            high = tl.load(columns + 4, mask=mask[:, None], other=0).to(tl.float32)
            products = ((codes & 15) - 8).to(tl.float32) * low[:, None, :]
            products += ((codes >> 4) - 8).to(tl.float32) * high[:, None, :]
            scale_index = (panel * (lines * 8 // GROUP) + line * 8 // GROUP)[:, None] * 32 + row[None, :]
            scale = tl.load(scales + scale_index, mask=mask[:, None], other=0).to(tl.float32)
            total += tl.sum(tl.sum(products, axis=2) * scale, axis=0)
    out_row = panel * 32 + row
    if GROUP == 0:
        total *= tl.load(scales + out_row, mask=out_row < rows, other=0)
    tl.store(out + (split * tl.num_programs(2) + m) * rows + out_row, total, mask=out_row < rows)


@triton.jit  # type: ignore[untyped-decorator]
def _dequantize(weight, scales, out, rows, lines, GROUP: tl.constexpr, LINES: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    panel, line = tl.program_id(0).to(tl.int64), tl.program_id(1) * LINES + tl.arange(0, LINES)
    row, byte = tl.arange(0, 32), tl.arange(0, 4)
    width: tl.constexpr = 4 if GROUP == 0 else 8
    out_row = panel * 32 + row
    mask = (line < lines)[None, :, None] & (out_row < rows)[:, None, None]
    code_index = (panel * lines + line)[None, :, None] * 128 + row[:, None, None] * 4 + byte[None, None, :]
    codes = tl.load(weight + code_index, mask=mask, other=0).to(tl.int32)  # [32, LINES, 4]
    column = byte // 2 + byte % 2 * 2 if GROUP == 0 else byte
    out_index = out_row[:, None, None] * (lines * width) + line[None, :, None] * width + column[None, None, :]
    if GROUP == 0:
        scale = tl.load(scales + out_row, mask=out_row < rows, other=0)[:, None, None]
        tl.store(out + out_index, (codes.to(tl.float32) * scale).to(out.dtype.element_ty), mask=mask)
    else:
        scale_index = (panel * (lines * 8 // GROUP) + line * 8 // GROUP)[None, :] * 32 + row[:, None]
        scale_mask = (line < lines)[None, :] & (out_row < rows)[:, None]
        scale = tl.load(scales + scale_index, mask=scale_mask, other=0).to(tl.float32)[:, :, None]
        low, high = ((codes & 15) - 8).to(tl.float32), ((codes >> 4) - 8).to(tl.float32)
        tl.store(out + out_index, (low * scale).to(out.dtype.element_ty), mask=mask)
        tl.store(out + out_index + 4, (high * scale).to(out.dtype.element_ty), mask=mask)
