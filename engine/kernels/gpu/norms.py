"""Norms of engine/layers/norms.py on an NVIDIA GPU, in Triton: of the residual stream, and of each head of q and k.

A program holds one row (or several short ones, such as heads) in registers and reads it once. The results are rounded
where the modules round.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu.launch import launch

ELEMENTS = 1024  # of a program that norms several short rows
MAX_WARPS = 16


def add_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, kind: str
) -> tuple[Tensor, Tensor]:
    """Add a branch's output to the residual stream, and norm the sum for the next branch.

    x [N, D] in rows of any stride; delta [N, D] or None; weight, bias [D] or None. `kind`: a key of
    engine.layers.norms.NORMS. -> (x + delta in x's dtype, or x itself without a delta; its norm [N, D])
    """
    count, size = x.shape
    total = x if delta is None else torch.empty(count, size, dtype=x.dtype, device=x.device)
    normed = torch.empty(count, size, dtype=_result_dtype(x, weight, kind), device=x.device)
    strides = x.stride(0), 0, 0 if delta is None else delta.stride(0)
    _launch(x, delta, weight, bias, total, normed, strides, 1, eps, kind)
    return total, normed


def head_norm(x: Tensor, weight: Tensor | None, eps: float, kind: str, bias: Tensor | None = None) -> Tensor:
    """Norm each head by itself: x [N, H, D] (a view of any strides, with contiguous heads) -> [N, H, D], contiguous.

    weight, bias [D] or None. `kind`: a key of engine.layers.norms.NORMS.
    """
    normed = torch.empty(x.shape, dtype=_result_dtype(x, weight, kind), device=x.device)
    _launch(x, None, weight, bias, x, normed, (x.stride(0), x.stride(1), 0), x.shape[1], eps, kind)
    return normed


def _result_dtype(x: Tensor, weight: Tensor | None, kind: str) -> torch.dtype:
    """What the modules return if x is wider than the weight; otherwise all dtypes are the same."""
    return weight.dtype if kind == "layer" and weight is not None else x.dtype


def _launch(
    x: Tensor,
    delta: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    total: Tensor,
    normed: Tensor,
    strides: tuple[int, int, int],
    heads: int,
    eps: float,
    kind: str,
) -> None:
    """Norm all rows of `normed`, seen as [rows, D]. `strides` are x's of a token and of a head, and delta's."""
    size = normed.shape[-1]
    rows = normed.numel() // size
    if not rows:
        return
    block = triton.next_power_of_2(size)
    rows_per_program = max(1, ELEMENTS // block) if heads > 1 else 1
    warps = min(max(block * rows_per_program // 256, 1), MAX_WARPS)  # 16 bytes of 16-bit numbers a thread, if it can
    launch(
        _norm, (-(-rows // rows_per_program),), x, delta, weight, bias, total, normed, rows, heads, *strides, eps,
        SIZE=size, ROWS=rows_per_program, BLOCK=block, KIND=kind, CENTERED=kind.startswith("layer"), num_warps=warps,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _norm(  # type: ignore[no-untyped-def]
    x, delta, weight, bias, total, normed, rows, heads, token_stride, head_stride, delta_stride, eps,
    SIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr, CENTERED: tl.constexpr,  # noqa: N803
):  # fmt: skip
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    mask = (index < rows)[:, None] & (column < SIZE)[None, :]
    row = index.to(tl.int64)
    start = (index // heads).to(tl.int64) * token_stride + index % heads * head_stride
    values = tl.load(x + start[:, None] + column[None, :], mask=mask, other=0).to(tl.float32)
    # The weights are loaded ahead of the sums, which are barriers, so that their latency is hidden.
    if weight is not None:
        factor = tl.load(weight + column, mask=column < SIZE, other=0).to(tl.float32)[None, :]
    if bias is not None:
        shift = tl.load(bias + column, mask=column < SIZE, other=0).to(tl.float32)[None, :]
    if delta is not None:
        values += tl.load(delta + (row * delta_stride)[:, None] + column[None, :], mask=mask, other=0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + row[:, None] * SIZE + column[None, :], rounded, mask=mask)
        values = rounded.to(tl.float32)
    if CENTERED:
        values = tl.where(mask, values - tl.sum(values, axis=1)[:, None] / SIZE, 0)
    variance = tl.sum(values * values, axis=1)[:, None] / SIZE
    unit = values * tl.rsqrt(variance + eps)
    if KIND == "RMS":  # rounded before the product, too
        result = unit.to(x.dtype.element_ty).to(tl.float32) * factor
    elif KIND == "RMS, float32":
        result = unit * factor
    elif KIND == "RMS, 1 + w":
        result = unit * (1 + factor)
    elif KIND == "layer":
        result = unit * factor + shift
    else:
        result = unit
    tl.store(normed + row[:, None] * SIZE + column[None, :], result.to(normed.dtype.element_ty), mask=mask)
