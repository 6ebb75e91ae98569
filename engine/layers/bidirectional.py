"""Bidirectional attention: every token attends to its whole row (encoders).

Rows of similar lengths are one batch of torch's kernel. An encoder pads them once, before its layers: with so little
to pad, the products of a few more tokens take less time than gathering q, k and v in each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.layers.linear import Linear
from engine.runtime.device import upload

# Padding of a batch: a share of its tokens, or a few in a small one. More batches need less, but each is a call.
MAX_SHARE, MAX_FEW = 0.02, 8


@dataclass(frozen=True)
class Batch:
    """Neighbouring rows that attend in one call: `count` rows of `longest` tokens, with the padding."""

    tokens: slice  # of the padded step
    count: int
    longest: int
    visible: Tensor | None = None  # [count, 1, 1, longest]: which keys are no padding. None: all


@dataclass(frozen=True)
class PaddedRows:
    """How the N tokens of a step become P with padding, in batches."""

    batches: list[Batch]
    places: Tensor | None = None  # [P], of tokens in the step: padding repeats a row's last. None: there is no padding
    kept: Tensor | None = None  # [N], places of the tokens among the P

    def pad(self, values: Tensor) -> Tensor:
        """[N, …] -> [P, …]."""
        return values if self.places is None else values.index_select(0, self.places)

    def unpad(self, values: Tensor) -> Tensor:
        """[P, …] -> [N, …]."""
        return values if self.kept is None else values.index_select(0, self.kept)


def pad_rows(lengths: Sequence[int], device: torch.device) -> PaddedRows:
    """Group the rows of a step, in their order: sorted by length, they need little padding."""
    groups = _groups(lengths)
    sizes = torch.tensor(lengths)
    counts, longest = torch.tensor(groups).T
    padded = longest.repeat_interleave(counts)  # [R]
    row = torch.arange(len(sizes)).repeat_interleave(padded)  # [P]
    position = torch.arange(len(row)) - (padded.cumsum(0) - padded)[row]
    visible = position < sizes[row]
    batches, start = [], 0
    for count, width in groups:
        tokens = slice(start, start + count * width)
        mask = None if bool(visible[tokens].all()) else visible[tokens].view(count, 1, 1, width)
        batches.append(Batch(tokens, count, width, None if mask is None else upload(mask, torch.bool, device)))
        start = tokens.stop
    if bool(visible.all()):
        return PaddedRows(batches)
    places = torch.minimum(position, sizes[row] - 1) + (sizes.cumsum(0) - sizes)[row]
    kept = visible.nonzero()[:, 0]
    return PaddedRows(batches, upload(places, torch.long, device), upload(kept, torch.long, device))


def _groups(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Number of rows and greatest length of each batch."""
    groups: list[tuple[int, int]] = []
    longest = tokens = count = 0
    for length in lengths:
        padding = max(longest, length) * (count + 1) - tokens - length
        if count and padding > max(MAX_FEW, MAX_SHARE * (tokens + length)):
            groups.append((count, longest))
            longest = tokens = count = 0
        longest, tokens, count = max(longest, length), tokens + length, count + 1
    return [*groups, (count, longest)]


class BidirectionalAttention(nn.Module):
    """Multi-head self-attention with biases, over whole rows."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(hidden_size, *[hidden_size] * 3, bias=True)
        self.out = Linear(hidden_size, hidden_size, bias=True)

    def forward(self, x: Tensor, batches: Sequence[Batch]) -> Tensor:
        """x [P, hidden], padded, -> [P, hidden]. `batches`: see `pad_rows`."""
        qkv = self.qkv(x)
        parts = []
        for batch in batches:
            heads = qkv[batch.tokens].view(batch.count, batch.longest, 3, self.num_heads, -1)
            q, k, v = heads.permute(2, 0, 3, 1, 4)  # [count, H, longest, D] each
            mixed = F.scaled_dot_product_attention(q, k, v, batch.visible)
            parts.append(mixed.transpose(1, 2).reshape(batch.count * batch.longest, -1))
        return self.out(parts[0] if len(parts) == 1 else torch.cat(parts))
