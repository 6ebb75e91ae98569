"""Take one token per row of logits: the likeliest, or a random draw that depends only on (seed, position).

Pure functions on [R, V] in PyTorch's operators, for any device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from engine import kernels

INVALID = -1  # in place of a token: the logits of the row are not finite numbers
BLOCK = 512  # weights that are added together first


def most_likely(logits: Tensor) -> Tensor:
    """The token with the largest logit of every row [R]; the lowest id wins a tie.

    The check for invalid rows uses the maximum, which any NaN reaches; the result travels with the ids, without another
    synchronization of the device.
    """
    ops = kernels.for_input(logits)
    if ops is not None:
        return ops.argmax(logits)
    largest, tokens = logits.max(dim=-1)
    return torch.where(largest.abs() < math.inf, tokens, INVALID)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token per row [R]: invert the cumulative distribution of softmax(logits) at `uniforms` [R].

    `INVALID` if the sum is NaN, as it is if a logit is NaN or the largest one is infinite.
    """
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    vocab_size = logits.shape[1]
    weights = functional.pad(logits - logits.amax(-1, keepdim=True), (0, -vocab_size % BLOCK), value=-math.inf).exp_()
    blocks = weights.view(len(weights), -1, BLOCK)  # only in one of them are the weights added one by one
    ends = blocks.sum(-1, dtype=wide).cumsum(-1)
    total = ends[:, -1:]
    target = uniforms.to(ends)[:, None] * total
    block = torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[1] - 1)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0].cumsum(-1, dtype=wide)
    rest = target - torch.where(block > 0, ends.gather(1, (block - 1).clamp_(min=0)), 0)
    largest = inside[:, -1:] * (1 - torch.finfo(wide).eps)  # no rounding leads to a weight of 0
    token = torch.searchsorted(inside, rest.clamp_(min=0).minimum(largest), right=True)
    tokens = (block * BLOCK + token).clamp_(max=vocab_size - 1)
    return tokens.masked_fill_(total.isnan(), INVALID)[:, 0]


def uniform(seeds: Sequence[int], positions: Sequence[int]) -> Tensor:
    """Numbers in [0, 1) [R], float64 on the CPU; each depends only on its (seed, position)."""
    mixed = [_mix(_mix(seed) + position) for seed, position in zip(seeds, positions, strict=True)]
    return torch.tensor([(bits >> 11) / 2**53 for bits in mixed], dtype=torch.float64)


def _mix(value: int) -> int:
    """One output of SplitMix64 (Steele et al. 2014): a 64-bit hash of `value`."""
    mask = 2**64 - 1
    value = (value + 1) * 0x9E3779B97F4A7C15 & mask
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & mask
    value = (value ^ value >> 27) * 0x94D049BB133111EB & mask
    return value ^ value >> 31
