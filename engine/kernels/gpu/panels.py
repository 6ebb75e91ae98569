"""Weights in panels on an NVIDIA GPU, in Triton: a few rows times a matrix, and a matrix as numbers.

Triton comes with torch for CUDA, so this file is imported only there. Where it is missing, PyTorch's operators do the
same (engine/formats/panels.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LINES = 32  # of a panel that a program takes at a time
PROGRAMS = 1024  # at least, so that every processor of a large GPU has some


def linear(x: Tensor, weight: Tensor, scales: Tensor, rows: int) -> Tensor:
    """x [M, k] times a weight in panels -> [M, rows], float32."""
    panels, lines = weight.shape[:2]
    splits = max(1, min(-(-PROGRAMS // (panels * len(x))), lines // LINES))
    each = -(-lines // splits // LINES) * LINES
    splits = -(-lines // each)
    out = torch.empty(splits, len(x), rows, device=x.device)
    _linear[(panels, splits, len(x))](
        x.contiguous(), weight, scales, out, rows, lines, each, GROUP=_group(weight, scales), LINES=LINES
    )
    return out.sum(0) if splits > 1 else out[0]


def dequantize(weight: Tensor, scales: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """A weight in panels as numbers [rows, k]."""
    panels, lines = weight.shape[:2]
    group = _group(weight, scales)
    out = torch.empty(rows, lines * (4 if group == 0 else 8), dtype=dtype, device=weight.device)
    grid = (panels, -(-lines // LINES))
    _dequantize[grid](weight, scales, out, rows, lines, GROUP=group, LINES=LINES)
    return out


def _group(weight: Tensor, scales: Tensor) -> int:
    """Columns of 4 bits that share a scale; 0 for 8 bits, where a row has one."""
    return 0 if weight.dtype == torch.int8 else weight.shape[1] * 8 // scales.shape[1]


@triton.jit  # type: ignore[untyped-decorator]
def _linear(x, weight, scales, out, rows, lines, each, GROUP: tl.constexpr, LINES: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    panel, split, m = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    row, byte = tl.arange(0, 32), tl.arange(0, 4)
    first = byte // 2 + byte % 2 * 2 if GROUP == 0 else byte  # column of a byte, or of its lower half
    width: tl.constexpr = 4 if GROUP == 0 else 8
    total = tl.zeros([32], tl.float32)
    for start in range(split * each, min((split + 1) * each, lines), LINES):
        line = start + tl.arange(0, LINES)
        there = line < lines
        places = (panel * lines + line)[:, None, None] * 128 + row[None, :, None] * 4 + byte[None, None, :]
        codes = tl.load(weight + places, mask=there[:, None, None], other=0).to(tl.int32)
        columns = x + m * lines * width + line[:, None] * width + first[None, :]
        low = tl.load(columns, mask=there[:, None], other=0).to(tl.float32)
        if GROUP == 0:
            total += tl.sum(tl.sum(codes.to(tl.float32) * low[:, None, :], axis=2), axis=0)
        else:
            high = tl.load(columns + 4, mask=there[:, None], other=0).to(tl.float32)
            products = ((codes & 15) - 8).to(tl.float32) * low[:, None, :]
            products += ((codes >> 4) - 8).to(tl.float32) * high[:, None, :]
            own = scales + (panel * (lines * 8 // GROUP) + line * 8 // GROUP)[:, None] * 32 + row[None, :]
            scale = tl.load(own, mask=there[:, None], other=0).to(tl.float32)
            total += tl.sum(tl.sum(products, axis=2) * scale, axis=0)
    place = panel * 32 + row
    if GROUP == 0:
        total *= tl.load(scales + place, mask=place < rows, other=0)
    tl.store(out + (split * tl.num_programs(2) + m) * rows + place, total, mask=place < rows)


@triton.jit  # type: ignore[untyped-decorator]
def _dequantize(weight, scales, out, rows, lines, GROUP: tl.constexpr, LINES: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    panel, line = tl.program_id(0).to(tl.int64), tl.program_id(1) * LINES + tl.arange(0, LINES)
    row, byte = tl.arange(0, 32), tl.arange(0, 4)
    width: tl.constexpr = 4 if GROUP == 0 else 8
    place = panel * 32 + row
    there = (line < lines)[None, :, None] & (place < rows)[:, None, None]
    places = (panel * lines + line)[None, :, None] * 128 + row[:, None, None] * 4 + byte[None, None, :]
    codes = tl.load(weight + places, mask=there, other=0).to(tl.int32)  # [32, LINES, 4]
    first = byte // 2 + byte % 2 * 2 if GROUP == 0 else byte
    to = place[:, None, None] * (lines * width) + line[None, :, None] * width + first[None, None, :]
    if GROUP == 0:
        scale = tl.load(scales + place, mask=place < rows, other=0)[:, None, None]
        tl.store(out + to, (codes.to(tl.float32) * scale).to(out.dtype.element_ty), mask=there)
    else:
        own = scales + (panel * (lines * 8 // GROUP) + line * 8 // GROUP)[None, :] * 32 + row[:, None]
        inside = (line < lines)[None, :] & (place < rows)[:, None]
        scale = tl.load(own, mask=inside, other=0).to(tl.float32)[:, :, None]
        low, high = ((codes & 15) - 8).to(tl.float32), ((codes >> 4) - 8).to(tl.float32)
        tl.store(out + to, (low * scale).to(out.dtype.element_ty), mask=there)
        tl.store(out + to + 4, (high * scale).to(out.dtype.element_ty), mask=there)
