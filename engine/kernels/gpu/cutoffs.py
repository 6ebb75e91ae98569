"""Which tokens top-k, top-p and min-p keep, on an NVIDIA GPU, in Triton: an exact cutoff for every row of logits.

The distance of a token is (largest logit - its logit) / temperature, a float32 of at least 0. The bits of such numbers,
read as integers, have the same order. The cutoff is the largest distance that is kept.

A token's mass is exp(-distance) in units of 2^-44, as an integer. Sums of integers do not depend on the order of the
additions, so the same logits give the same token on every run, even with atomic additions.

    _maxima      the largest logit of every 128 ids
    _bounds      the largest logit of the row, and a distance within which the cutoff lies (the limit)
    _histogram   up to the limit: number of tokens and mass by distance, in bins of equal width
    _find_bins   the bins in which the cutoffs of top-k and top-p lie
    _collect     the distances in these bins: usually a few hundred of 150,000
    _refine      the cutoffs among them

Without top-k and top-p in any row, the first two suffice.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu.launch import launch

BLOCK = 1024  # ids of one program
GROUP = 128  # ids of which the largest logit is kept
BINS = 2048
MAX_VOCAB = 2**19 - 1  # so that the mass of all tokens, at most 2^44 each, fits into 63 bits

_UNIT = tl.constexpr(2.0**44)  # the mass of the likeliest token
_REACH = tl.constexpr(31.0)  # from 30.5 on the mass is 0
_LOG_MAX_VOCAB = tl.constexpr(math.log(MAX_VOCAB) + 0.01)  # 0.01: more than any rounding
_INFINITY = tl.constexpr(float("inf"))
_INFINITY_BITS = tl.constexpr(0x7F800000)

# Columns of a row of `reals` and `integers`, and of the results `bounds` (float32) and `found` (int64).
TEMPERATURE, TOP_P, MIN_P = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
TOP_K, SEED = tl.constexpr(0), tl.constexpr(1)
LARGEST, SCALE, CUTOFF = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # SCALE: the temperature, 1 if it is 0
LIMIT, BINS_PER_UNIT = tl.constexpr(3), tl.constexpr(4)  # LIMIT < 0: neither top-k nor top-p
K, K_BIN, FIRST, LAST = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
RANK, MASS, BEFORE, COUNT = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6), tl.constexpr(7)


def find_cutoffs(logits: Tensor, reals: Tensor, integers: Tensor, has_filters: bool) -> Tensor:
    """-> bounds [R, 8], float32: for every row the columns LARGEST, SCALE and CUTOFF.

    The arguments are those of `sample`. The largest logit of an invalid row is NaN or infinite.
    """
    rows, vocab = logits.shape
    device = logits.device
    blocks = triton.cdiv(vocab, BLOCK)
    groups = blocks * (BLOCK // GROUP)
    bins = BINS if has_filters else 1
    maxima = torch.empty(rows, groups, device=device)
    bounds = torch.empty(rows, 8, device=device)
    found = torch.empty(rows, 8, dtype=torch.int64, device=device)
    counts = torch.empty(rows, bins, dtype=torch.int32, device=device)
    masses = torch.empty(rows, bins, dtype=torch.int64, device=device)
    launch(_maxima, (rows, blocks), logits, vocab, logits.stride(0), maxima, groups, BLOCK=BLOCK, GROUP=GROUP)
    arguments = (maxima, groups, vocab, reals, integers, bounds, found, counts, masses)
    size = triton.next_power_of_2(groups)
    launch(_bounds, (rows,), *arguments, FILTERS=has_filters, GROUPS=size, BINS=bins, WAYS=16, num_warps=8)
    if not has_filters:
        return bounds
    totals = torch.empty(rows, blocks, dtype=torch.int64, device=device)
    members = torch.empty(rows, vocab, dtype=torch.int32, device=device)
    logits_and_bounds = (logits, vocab, logits.stride(0), bounds, found)
    launch(_histogram, (rows, blocks), *logits_and_bounds, reals, totals, counts, masses, BLOCK=BLOCK, BINS=BINS)
    size = triton.next_power_of_2(blocks)
    histogram = (totals, blocks, reals, bounds, found, counts, masses)
    launch(_find_bins, (rows,), *histogram, BLOCKS=size, BINS=BINS, num_warps=8)
    launch(_collect, (rows, blocks), *logits_and_bounds, members, BLOCK=BLOCK, BINS=BINS)
    launch(_refine, (rows,), members, vocab, reals, bounds, found, TILE=512, WAYS=16, num_warps=8)
    return bounds


@triton.jit
def distances(logits, token, vocab, bounds):  # type: ignore[no-untyped-def]
    """Distances of tokens of a row, the same as on the CPU: the division is IEEE's. Infinite beyond the vocabulary."""
    x = tl.load(logits + token, mask=token < vocab, other=-_INFINITY).to(tl.float32)
    scaled = tl.div_rn(tl.load(bounds + LARGEST) - x, tl.load(bounds + SCALE))
    return tl.abs(scaled)  # 0 may be -0, whose bits are those of a negative integer


@triton.jit
def masses_within(distance, cutoff):  # type: ignore[no-untyped-def]
    """Masses of the tokens up to a cutoff; 0 beyond it, and where the distance is NaN."""
    return (tl.exp(tl.where(distance <= cutoff, -distance, -_INFINITY)) * _UNIT).to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def _maxima(logits, vocab, stride, maxima, groups, BLOCK: tl.constexpr, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * stride + token, mask=token < vocab, other=-_INFINITY).to(tl.float32)
    group = block * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    tl.store(maxima + row * groups + group, _max(tl.reshape(x, [BLOCK // GROUP, GROUP]), 1))


@triton.jit  # type: ignore[untyped-decorator]
def _max(x, AXIS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """The maximum; NaN if there is any, which `tl.max` would pass over."""
    is_nan = x != x  # noqa: PLR0124
    largest = tl.max(tl.where(is_nan, -_INFINITY, x), axis=AXIS)
    return tl.where(tl.max(is_nan.to(tl.int32), axis=AXIS) > 0, float("nan"), largest)


@triton.jit  # type: ignore[untyped-decorator]
def _bounds(  # type: ignore[no-untyped-def]
    maxima, groups, vocab, reals, integers, bounds, found, counts, masses,
    FILTERS: tl.constexpr, GROUPS: tl.constexpr, BINS: tl.constexpr, WAYS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """The limit follows from this: the k-th largest logit is at least the k-th largest of the groups' maxima; and all
    tokens beyond the limit of top-p together, however many, have less mass than 1 - top_p.
    """
    row = tl.program_id(0).to(tl.int64)
    reals += row * 3
    bounds += row * 8
    found += row * 8
    group = tl.arange(0, GROUPS)
    x = tl.load(maxima + row * groups + group, mask=group < groups, other=-_INFINITY)
    largest, temperature = _max(x, 0), tl.load(reals + TEMPERATURE).to(tl.float32)
    scale = tl.where(temperature > 0, temperature, 1.0)
    tl.store(bounds + LARGEST, largest)
    tl.store(bounds + SCALE, scale)
    tl.store(bounds + CUTOFF, tl.where(temperature > 0, tl.load(reals + MIN_P).to(tl.float32), 0.0))
    if FILTERS:
        k, top_p = tl.load(integers + row * 2 + TOP_K), tl.load(reals + TOP_P)
        is_used = (temperature > 0) & (largest - largest == 0)
        k = tl.where(is_used & (k < vocab), k, 0)
        limit = _LOG_MAX_VOCAB - tl.log(tl.maximum((1 - top_p).to(tl.float32), 1e-20))
        limit = tl.where(is_used & (top_p < 1), limit, -1.0)
        if k > 0:
            limit = _REACH
            if k <= groups:
                key = tl.abs(tl.div_rn(largest - x, scale)).to(tl.int32, bitcast=True)
                low, high = tl.full([], 0, tl.int32), tl.full([], _INFINITY_BITS, tl.int32)
                while low < high:  # as in _select
                    step = (high - low) // WAYS + 1
                    edge = low + step * tl.arange(0, WAYS)
                    below = tl.sum((key[:, None] < edge[None, :]).to(tl.int32), axis=0)
                    part = tl.max(tl.where(below < k, tl.arange(0, WAYS), 0))
                    low, high = low + step * part, tl.minimum(high, low + step * part + step - 1)
                limit = low.to(tl.float32, bitcast=True)
        limit = tl.where(limit < 0, -1.0, tl.clamp(limit, 1e-30, _REACH))
        tl.store(found + K, k)
        tl.store(found + COUNT, 0)
        tl.store(bounds + LIMIT, limit)
        tl.store(bounds + BINS_PER_UNIT, BINS / limit)
        bin_ = tl.arange(0, BINS)
        tl.store(counts + row * BINS + bin_, tl.zeros([BINS], tl.int32))
        tl.store(masses + row * BINS + bin_, tl.zeros([BINS], tl.int64))


@triton.jit  # type: ignore[untyped-decorator]
def _bins(distance, bounds, BINS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """The bins of distances, -1 beyond the limit. A larger distance never has a lower bin."""
    is_inside = distance <= tl.load(bounds + LIMIT)
    bin_ = (tl.where(is_inside, distance, 0.0) * tl.load(bounds + BINS_PER_UNIT)).to(tl.int32)
    return tl.where(is_inside, tl.minimum(bin_, BINS - 1), -1)


@triton.jit  # type: ignore[untyped-decorator]
def _histogram(  # type: ignore[no-untyped-def]
    logits, vocab, stride, bounds, found, reals, totals, counts, masses,
    BLOCK: tl.constexpr, BINS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    bounds += row * 8
    if tl.load(bounds + LIMIT) >= 0:
        token = block * BLOCK + tl.arange(0, BLOCK)
        distance = distances(logits + row * stride, token, vocab, bounds)
        mass = masses_within(distance, _REACH)
        tl.store(totals + row * tl.num_programs(1) + block, tl.sum(mass))
        bin_ = _bins(distance, bounds, BINS)
        if tl.load(found + row * 8 + K) > 0:
            tl.atomic_add(counts + row * BINS + bin_, 1, mask=bin_ >= 0, sem="relaxed")
        if tl.load(reals + row * 3 + TOP_P) < 1:
            tl.atomic_add(masses + row * BINS + bin_, mass, mask=bin_ >= 0, sem="relaxed")


@triton.jit
def _target(top_p, mass):  # type: ignore[no-untyped-def]
    """The mass that top-p keeps at least. Never less for a larger mass, and never more than all of it."""
    return tl.minimum(tl.ceil(top_p * mass.to(tl.float64)).to(tl.int64), mass)


@triton.jit  # type: ignore[untyped-decorator]
def _find_bins(totals, blocks, reals, bounds, found, counts, masses, BLOCKS: tl.constexpr, BINS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """The bin of the k-th token is certain. How much mass top-k keeps is not, as it may keep a part of this bin; so the
    cutoff of top-p is in one of the bins from FIRST to LAST, usually the same.
    """
    row = tl.program_id(0).to(tl.int64)
    found += row * 8
    if tl.load(bounds + row * 8 + LIMIT) >= 0:
        bin_, block = tl.arange(0, BINS), tl.arange(0, BLOCKS)
        count = tl.load(counts + row * BINS + bin_)
        mass = tl.load(masses + row * BINS + bin_)
        total = tl.sum(tl.load(totals + row * blocks + block, mask=block < blocks, other=0))
        k, top_p = tl.load(found + K), tl.load(reals + row * 3 + TOP_P)
        k_bin = tl.sum((tl.cumsum(count) < k).to(tl.int32))
        has_k_bin = (k > 0) & (k_bin < BINS)  # else even the k-th token has no mass, and top-k changes nothing
        k_bin = tl.where(has_k_bin, k_bin, BINS)
        least = tl.where(has_k_bin, tl.sum(tl.where(bin_ < k_bin, mass, 0)), total)
        most = tl.where(has_k_bin, tl.sum(tl.where(bin_ <= k_bin, mass, 0)), total)
        end = tl.cumsum(mass)
        first = tl.sum((end < _target(top_p, least)).to(tl.int32))
        last = tl.sum((end < _target(top_p, most)).to(tl.int32))
        first, last = tl.where(top_p < 1, first, BINS), tl.where(top_p < 1, last, -1)
        is_collected = ((bin_ >= first) & (bin_ <= last)) | (bin_ == k_bin)
        is_before = (bin_ < k_bin) & (is_collected == 0)
        tl.store(found + K_BIN, k_bin)
        tl.store(found + FIRST, first)
        tl.store(found + LAST, last)
        # RANK: of the k-th token among the collected ones, 0 without top-k. MASS: what top-k keeps besides these.
        tl.store(found + RANK, tl.where(has_k_bin, k - tl.sum(tl.where(is_before, count, 0)), 0))
        tl.store(found + MASS, tl.where(has_k_bin, tl.sum(tl.where(is_before, mass, 0)), total))
        tl.store(found + BEFORE, tl.sum(tl.where(bin_ < first, mass, 0)))


@triton.jit  # type: ignore[untyped-decorator]
def _collect(logits, vocab, stride, bounds, found, members, BLOCK: tl.constexpr, BINS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """The bits of the distances in these bins, in any order."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    bounds += row * 8
    found += row * 8
    if tl.load(bounds + LIMIT) >= 0:
        token = block * BLOCK + tl.arange(0, BLOCK)
        distance = distances(logits + row * stride, token, vocab, bounds)
        bin_ = _bins(distance, bounds, BINS)
        is_in_range = (bin_ >= tl.load(found + FIRST)) & (bin_ <= tl.load(found + LAST))
        is_member = is_in_range | (bin_ == tl.load(found + K_BIN))
        size = tl.sum(is_member.to(tl.int64))
        if size > 0:
            place = tl.atomic_add(found + COUNT, size, sem="relaxed") + tl.cumsum(is_member.to(tl.int32)) - 1
            tl.store(members + row * vocab + place, distance.to(tl.int32, bitcast=True), mask=is_member)


@triton.jit  # type: ignore[untyped-decorator]
def _refine(members, vocab, reals, bounds, found, TILE: tl.constexpr, WAYS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    row = tl.program_id(0).to(tl.int64)
    members += row * vocab
    bounds += row * 8
    found += row * 8
    if tl.load(bounds + LIMIT) >= 0:
        size = tl.load(found + COUNT).to(tl.int32)
        cutoff, rank, mass = tl.load(bounds + CUTOFF), tl.load(found + RANK), tl.load(found + MASS)
        top_p = tl.load(reals + row * 3 + TOP_P)
        if rank > 0:
            kth = _select(members, size, rank, False, TILE, WAYS).to(tl.float32, bitcast=True)
            cutoff = tl.minimum(cutoff, kth)
            for start in range(0, size, TILE):
                index = start + tl.arange(0, TILE)
                key = tl.load(members + index, mask=index < size, other=_INFINITY_BITS)
                mass += tl.sum(masses_within(key.to(tl.float32, bitcast=True), kth))
        if top_p < 1:
            need = _target(top_p, mass) - tl.load(found + BEFORE)
            cutoff = tl.minimum(cutoff, _select(members, size, need, True, TILE, WAYS).to(tl.float32, bitcast=True))
        tl.store(bounds + CUTOFF, cutoff)


@triton.jit  # type: ignore[untyped-decorator]
def _select(members, size, need, BY_MASS: tl.constexpr, TILE: tl.constexpr, WAYS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """The smallest member with which the number or mass of all up to it reaches `need`.

    Each step divides the interval of what it may be, `low` to `high`, into `WAYS` parts.
    """
    index = tl.arange(0, TILE)
    low, high = tl.full([], _INFINITY_BITS, tl.int32), tl.full([], 0, tl.int32)
    for start in range(0, size, TILE):
        is_member = start + index < size
        low = tl.minimum(low, tl.min(tl.load(members + start + index, mask=is_member, other=_INFINITY_BITS)))
        high = tl.maximum(high, tl.max(tl.load(members + start + index, mask=is_member, other=0)))
    while low < high:
        step = (high - low) // WAYS + 1
        edge = low + step * tl.arange(0, WAYS)
        below = tl.zeros([WAYS], tl.int64)
        for start in range(0, size, TILE):
            key = tl.load(members + start + index, mask=start + index < size, other=_INFINITY_BITS)
            weight = tl.full([TILE], 1, tl.int64)
            if BY_MASS:
                weight = masses_within(key.to(tl.float32, bitcast=True), _REACH)
            below += tl.sum(tl.where(key[:, None] < edge[None, :], weight[:, None], 0), axis=0)
        part = tl.max(tl.where(below < need, tl.arange(0, WAYS), 0))
        low, high = low + step * part, tl.minimum(high, low + step * part + step - 1)
    return low
