"""Products of a few rows with a dense matrix on an NVIDIA GPU, in Triton, as fast as its memory delivers the matrix.

A program computes BLOCK_ROWS entries of the output for all rows of x. Its threads lie along k: each reads 16 bytes of
every row of the matrix at a time, one step ahead of the products, and sums in float32. All sums have the same order
however many rows x has, so each row's bits are those that it has alone. Tensor cores are not needed: up to 8 rows,
float32 products keep pace with the memory. Nor is k split over programs: even 2,048 rows are 512 programs of 4 warps,
which have more bytes on their way than an H200 needs, and so a product is one launch.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.gpu.activations import activate
from engine.kernels.gpu.launch import launch

BLOCK_ROWS = 4  # rows of the matrix per program
WARPS_PER_MULTIPROCESSOR = 12  # wanted; each has up to 4 KB on their way, and 25 KB suffice for 4.8 TB/s
MAX_WARPS = 8  # per program


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b for x [M, k], 1 <= M <= gpu.MAX_DENSE_ROWS, weight [rows, k], bias [rows] -> [M, rows] in x's dtype.

    All of the same dtype. Sums are float32, and are rounded once.
    """
    return _product(x, weight, bias, len(weight), "")


def dense_gated(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """gated_activation(dense_linear(x, weight, bias), activation), with the same bits: [M, k] -> [M, rows / 2]."""
    return _product(x, weight, bias, len(weight) // 2, activation)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, size: int, activation: str) -> Tensor:
    """`size`: columns of the output. With an activation, weight has 2 * size rows: of gates, then of ups."""
    rows, k = weight.shape
    if k * weight.itemsize % 16:  # a copy, so that rows are whole loads; no known model needs it
        padding = (0, -k % (16 // weight.itemsize))
        x, weight = F.pad(x, padding), F.pad(weight, padding)
    out = torch.empty(len(x), size, dtype=x.dtype, device=x.device)
    loads = weight.shape[1] * weight.itemsize // 16  # of a row
    programs = -(-rows // BLOCK_ROWS)
    wanted = WARPS_PER_MULTIPROCESSOR * _multiprocessors(weight.device)
    warps = 1
    while warps < MAX_WARPS and programs * warps < wanted and 32 * warps < loads:
        warps *= 2
    launch(
        _dense, (programs,), x.contiguous().view(torch.int32), weight.view(torch.int32), bias, out, len(x), size, loads,
        ACTIVATION=activation, BLOCK_M=triton.next_power_of_2(len(x)), BLOCK_ROWS=BLOCK_ROWS, THREADS=32 * warps,
        WHOLE=loads % (32 * warps) == 0, num_warps=warps,
    )  # fmt: skip
    return out


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


@triton.jit(do_not_specialize=["m_rows"])  # type: ignore[untyped-decorator]
def _dense(  # type: ignore[no-untyped-def]
    x, weight, bias, out, m_rows, size, loads,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_ROWS: tl.constexpr,  # noqa: N803
    THREADS: tl.constexpr, WHOLE: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """x, weight: rows of 4 * loads words of 32 bits, which hold one or two numbers of out's dtype.

    WHOLE: rows are a multiple of the words of a step.
    """
    m, index = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_ROWS)
    if ACTIVATION == "":
        entry = tl.program_id(0) * BLOCK_ROWS + index
        row = tl.minimum(entry, size - 1)  # beyond the end the last row is computed again, and not stored
    else:  # gates and ups alternate
        entry = tl.program_id(0) * (BLOCK_ROWS // 2) + index // 2
        row = tl.minimum(entry, size - 1) + index % 2 * size
    words = loads * 4
    STEP: tl.constexpr = THREADS * 4  # noqa: N806
    column = tl.arange(0, STEP)
    weights = weight + row.to(tl.int64)[:, None] * words + column[None, :]
    inputs = x + tl.minimum(m, m_rows - 1)[:, None] * words + column[None, :]

    total = tl.zeros([BLOCK_M, BLOCK_ROWS, THREADS], tl.float32)  # a thread has [BLOCK_M, BLOCK_ROWS] in registers
    tile = tl.load(weights, mask=(column < words)[None, :], other=0, eviction_policy="evict_first")
    for start in range(0, words, STEP):
        # The next step's words are on their way during this step's products.
        left = words - start - STEP
        next_words = weights + start + STEP
        next_tile = tl.load(next_words, mask=(column < left)[None, :], other=0, eviction_policy="evict_first")
        if WHOLE:
            x_tile = tl.load(inputs + start)
        else:
            x_tile = tl.load(inputs + start, mask=(column + start < words)[None, :], other=0)
        x_parts = tl.reshape(x_tile, [BLOCK_M, THREADS, 4])
        total = _add_products(x_parts, tl.reshape(tile, [BLOCK_ROWS, THREADS, 4]), total, out.dtype.element_ty)
        tile = next_tile

    sums = tl.sum(total, axis=2)  # [BLOCK_M, BLOCK_ROWS]
    if bias is not None:
        sums += tl.load(bias + row, mask=entry < size, other=0).to(tl.float32)[None, :]
    result = sums.to(out.dtype.element_ty)
    if ACTIVATION != "":
        gate, up = tl.split(tl.reshape(result, [BLOCK_M, BLOCK_ROWS // 2, 2]))
        active = activate(gate.to(tl.float32), ACTIVATION).to(out.dtype.element_ty)
        result = (active.to(tl.float32) * up.to(tl.float32)).to(out.dtype.element_ty)
        entry = tl.program_id(0) * (BLOCK_ROWS // 2) + tl.arange(0, BLOCK_ROWS // 2)
    tl.store(out + m[:, None] * size + entry[None, :], result, mask=(m < m_rows)[:, None] & (entry < size)[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _add_products(x, tile, total, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """total [M, R, T] + the sum over words and their numbers of x [M, T, words] * tile [R, T, words].

    In a fixed order, each product and sum rounded once. The words of a thread are halved until they are single ones,
    which moves no data.
    """
    words: tl.constexpr = x.shape[2]
    if words > 1:
        x_even, x_odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1], words // 2, 2]))
        even, odd = tl.split(tl.reshape(tile, [tile.shape[0], tile.shape[1], words // 2, 2]))
        total = _add_products(x_odd, odd, _add_products(x_even, even, total, DTYPE), DTYPE)
    else:
        x, tile = tl.reshape(x, [x.shape[0], 1, x.shape[1]]), tl.reshape(tile, [1, tile.shape[0], tile.shape[1]])
        for part in tl.static_range(32 // DTYPE.primitive_bitwidth):
            x_number = tl.broadcast_to(_number(x, part, DTYPE), total.shape)
            total = tl.fma(x_number, tl.broadcast_to(_number(tile, part, DTYPE), total.shape), total)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _number(word, PART: tl.constexpr, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """The lower (0) or upper (1) number in words of 32 bits, as float32."""
    if DTYPE.is_fp32():
        number = word.to(tl.float32, bitcast=True)
    elif DTYPE.is_bf16():  # the upper half of the same float32
        number = (word & -0x10000 if PART else word << 16).to(tl.float32, bitcast=True)
    else:
        number = (word >> (16 * PART)).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return number
