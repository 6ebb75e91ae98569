"""Rotary positions and the writing of keys and values on an NVIDIA GPU, in Triton: one launch per layer."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu.launch import launch

ELEMENTS = 1024  # of the heads of one program


def rotate_and_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
) -> Tensor:
    """Rotate q and k as engine.layers.rope.rotate does, and write k and v into the cache.

    q [N, H, D], k and v [N, Hkv, D]: views of any strides, with contiguous heads. cos, sin [N, 1, angles], contiguous,
    in the dtype of q or in float32; angles <= D/2; None: no rotation. keys, values: the cache of one layer
    [blocks, Hkv, 16, D], contiguous, possibly larger than 2**31 numbers. slots [N], int64: token n goes to place
    slots[n] % 16 of block slots[n] // 16. -> rotated q [N, H, D], contiguous
    """
    count, heads, size = q.shape
    kv_heads, block_tokens = k.shape[1], keys.shape[2]
    out = torch.empty(count, heads, size, dtype=q.dtype, device=q.device)
    if not count:
        return out
    angles = 0 if cos is None else cos.shape[-1]
    block = triton.next_power_of_2(size)
    # A program takes some heads of one token, all of them of q, of k or of v.
    per_program = max(1, min(ELEMENTS // block, triton.next_power_of_2(max(heads, kv_heads))))
    q_programs, kv_programs = -(-heads // per_program), -(-kv_heads // per_program)
    launch(
        _rotate_and_write, (count, q_programs + 2 * kv_programs),
        q, k, v, cos, sin, out, keys, values, slots,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        HEADS=heads, KV_HEADS=kv_heads, SIZE=size, ANGLES=angles, BLOCK_TOKENS=block_tokens,
        PER_PROGRAM=per_program, Q_PROGRAMS=q_programs, KV_PROGRAMS=kv_programs,
        BLOCK=block, HALF_BLOCK=triton.next_power_of_2(max(angles, 1)),
        enable_fp_fusion=False,  # PyTorch rounds both products of a rotation before it adds them
    )  # fmt: skip
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _rotate_and_write(  # type: ignore[no-untyped-def]
    q, k, v, cos, sin, out, keys, values, slots,
    q_token_stride, q_head_stride, k_token_stride, k_head_stride, v_token_stride, v_head_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SIZE: tl.constexpr, ANGLES: tl.constexpr,  # noqa: N803
    BLOCK_TOKENS: tl.constexpr, PER_PROGRAM: tl.constexpr, Q_PROGRAMS: tl.constexpr, KV_PROGRAMS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if ANGLES > 0:
        cos += token * ANGLES
        sin += token * ANGLES
    if part < Q_PROGRAMS:
        head = part * PER_PROGRAM + tl.arange(0, PER_PROGRAM)
        source = q + token * q_token_stride + head * q_head_stride
        _rotate(source, out + (token * HEADS + head) * SIZE, head < HEADS, cos, sin, SIZE, ANGLES, BLOCK, HALF_BLOCK)
    else:
        slot = tl.load(slots + token)
        part -= Q_PROGRAMS
        head = part % KV_PROGRAMS * PER_PROGRAM + tl.arange(0, PER_PROGRAM)
        place = ((slot // BLOCK_TOKENS * KV_HEADS + head) * BLOCK_TOKENS + slot % BLOCK_TOKENS) * SIZE
        mask = head < KV_HEADS
        if part < KV_PROGRAMS:
            source = k + token * k_token_stride + head * k_head_stride
            _rotate(source, keys + place, mask, cos, sin, SIZE, ANGLES, BLOCK, HALF_BLOCK)
        else:
            source = v + token * v_token_stride + head * v_head_stride
            _copy(source, values + place, mask, 0, SIZE, BLOCK)


@triton.jit  # type: ignore[untyped-decorator]
def _rotate(  # type: ignore[no-untyped-def]
    source, target, mask, cos, sin,
    SIZE: tl.constexpr, ANGLES: tl.constexpr, BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Rotate the first 2 * ANGLES numbers of some heads, given by pointers, and copy the rest."""
    if ANGLES > 0:
        angle = tl.arange(0, HALF_BLOCK)
        mask_2d = mask[:, None] & (angle < ANGLES)[None, :]
        first = tl.load(source[:, None] + angle[None, :], mask=mask_2d, other=0).to(tl.float32)
        second = tl.load(source[:, None] + ANGLES + angle[None, :], mask=mask_2d, other=0).to(tl.float32)
        c = tl.load(cos + angle, mask=angle < ANGLES, other=0).to(tl.float32)[None, :]
        s = tl.load(sin + angle, mask=angle < ANGLES, other=0).to(tl.float32)[None, :]
        dtype: tl.constexpr = cos.dtype.element_ty  # in which PyTorch computes: every product and sum is rounded to it
        rotated_first = (first * c).to(dtype).to(tl.float32) - (second * s).to(dtype).to(tl.float32)
        rotated_second = (second * c).to(dtype).to(tl.float32) + (first * s).to(dtype).to(tl.float32)
        to_first = target[:, None] + angle[None, :]
        tl.store(to_first, rotated_first.to(dtype).to(target.dtype.element_ty), mask=mask_2d)
        tl.store(to_first + ANGLES, rotated_second.to(dtype).to(target.dtype.element_ty), mask=mask_2d)
    if 2 * ANGLES < SIZE:
        _copy(source, target, mask, 2 * ANGLES, SIZE, BLOCK)


@triton.jit  # type: ignore[untyped-decorator]
def _copy(source, target, mask, FIRST: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Copy numbers FIRST … SIZE - 1 of some heads, given by pointers."""
    column = tl.arange(0, BLOCK)
    mask_2d = mask[:, None] & ((column >= FIRST) & (column < SIZE))[None, :]
    tl.store(target[:, None] + column[None, :], tl.load(source[:, None] + column[None, :], mask=mask_2d), mask=mask_2d)
