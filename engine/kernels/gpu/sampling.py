"""Choosing a token for every row of logits on an NVIDIA GPU, in Triton: cutoff, then one draw.

Four launches without top-k and top-p, else eight, for any number of rows, and nothing is read back. So it can be part
of a CUDA graph. The filters and the units of mass: engine/kernels/gpu/cutoffs.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu.cutoffs import (
    BLOCK,
    CUTOFF,
    LARGEST,
    MAX_VOCAB,
    SEED,
    TEMPERATURE,
    distances,
    find_cutoffs,
    masses_within,
)
from engine.kernels.gpu.launch import launch


def sample(logits: Tensor, reals: Tensor, integers: Tensor, positions: Tensor, has_filters: bool) -> Tensor:
    """Choose a token for every row of logits [R, V] -> [R], int64; -1 where the largest logit is NaN or infinite.

    reals [R, 3], float64: temperature (0: the token with the largest logit, of several the lowest id), top_p (1: off),
    and -log(min_p), the distance up to which min-p keeps tokens (infinite: off).
    integers [R, 2], int64: top_k (0: off), seed. positions [R], int64: of the tokens in their texts.
    `has_filters`: whether any row has top-k or top-p. Raises `ValueError` if V > `MAX_VOCAB`.
    """
    rows, vocab = logits.shape
    if vocab > MAX_VOCAB:
        raise ValueError(f"{vocab:,} logits a row; the sampler takes up to {MAX_VOCAB:,}")
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    bounds = find_cutoffs(logits, reals, integers, has_filters)
    blocks = triton.cdiv(vocab, BLOCK)
    masses = torch.empty(rows, blocks, dtype=torch.int64, device=logits.device)
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    row_of_logits = (logits, vocab, logits.stride(0), bounds, masses)
    launch(_masses, (rows, blocks), *row_of_logits, BLOCK=BLOCK)
    size = triton.next_power_of_2(blocks)
    launch(_draw, (rows,), *row_of_logits, blocks, reals, integers, positions, tokens, BLOCK=BLOCK, BLOCKS=size)
    return tokens


@triton.jit  # type: ignore[untyped-decorator]
def _masses(logits, vocab, stride, bounds, masses, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    bounds += row * 8
    distance = distances(logits + row * stride, block * BLOCK + tl.arange(0, BLOCK), vocab, bounds)
    mass = tl.sum(masses_within(distance, tl.load(bounds + CUTOFF)))
    tl.store(masses + row * tl.num_programs(1) + block, mass)


@triton.jit(do_not_specialize_on_alignment=["positions"])  # type: ignore[untyped-decorator]
def _draw(  # type: ignore[no-untyped-def]
    logits, vocab, stride, bounds, masses, blocks, reals, integers, positions, tokens,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Invert the cumulative distribution, in the order of ids: find the block, then the token in it."""
    row = tl.program_id(0).to(tl.int64)
    bounds += row * 8
    bits = random_bits(tl.load(integers + row * 2 + SEED), tl.load(positions + row))
    bits = tl.where(tl.load(reals + row * 3 + TEMPERATURE) > 0, bits, 0)  # the first of those with the largest logit
    index = tl.arange(0, BLOCKS)
    mass = tl.load(masses + row * blocks + index, mask=index < blocks, other=0)
    # The first token is chosen with which the masses exceed u times their sum, u = bits / 2^64 < 1.
    target = tl.umulhi(bits, tl.sum(mass).to(tl.uint64)).to(tl.int64)
    block = tl.sum((tl.cumsum(mass) <= target).to(tl.int32))
    rest = target - tl.sum(tl.where(index < block, mass, 0))
    token = block * BLOCK + tl.arange(0, BLOCK)
    mass = masses_within(distances(logits + row * stride, token, vocab, bounds), tl.load(bounds + CUTOFF))
    rest = tl.minimum(rest, tl.sum(mass) - 1)  # so that the token has mass, even if `_masses` was compiled differently
    chosen = block * BLOCK + tl.sum((tl.cumsum(mass) <= rest).to(tl.int32))
    largest = tl.load(bounds + LARGEST)
    tl.store(tokens + row, tl.where(largest - largest == 0, tl.minimum(chosen, vocab - 1), -1))


@triton.jit
def random_bits(seed, position):  # type: ignore[no-untyped-def]
    """The first 53 of 64 random bits, the others 0; `uniform` of engine/decoding/draws.py is this / 2^64."""
    return _mix(_mix(seed.to(tl.uint64)) + position.to(tl.uint64)) >> 11 << 11


@triton.jit
def _mix(value):  # type: ignore[no-untyped-def]
    """One output of SplitMix64 (Steele et al. 2014). Unsigned, so that products wrap and shifts are logical."""
    value = (value + 1) * 0x9E3779B97F4A7C15
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB
    return value ^ (value >> 31)
