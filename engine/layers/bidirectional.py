"""Bidirectional attention: every token attends to its whole row (encoders).

Rows of similar lengths are one batch of torch's kernel, padded inside this layer alone, with a mask of a row's keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.layers.linear import Linear
from engine.runtime.device import upload

# Padded tokens of a batch, per token. More batches waste less, but each is a call for all of torch's threads.
MAX_PADDED = 1.2


@dataclass(frozen=True)
class Batch:
    """Neighbouring rows of a step that attend in one call: `count` rows of up to `longest` tokens."""

    tokens: slice  # in the step
    count: int
    longest: int
    places: Tensor | None = None  # [count * longest], of tokens in the step: padding repeats a row's last. None: none
    visible: Tensor | None = None  # [count, 1, 1, longest]: which keys are no padding
    kept: Tensor | None = None  # [tokens], places in the batch


def batches(lengths: Sequence[int], device: torch.device) -> list[Batch]:
    """Group the rows of a step, in their order: sorted by length, they need little padding."""
    result: list[Batch] = []
    first = start = 0
    while first < len(lengths):
        longest = tokens = count = 0
        for length in lengths[first:]:
            padded = max(longest, length) * (count + 1)
            if count and padded > MAX_PADDED * (tokens + length):
                break
            longest, tokens, count = max(longest, length), tokens + length, count + 1
        result.append(_batch(start, lengths[first : first + count], longest, device))
        first, start = first + count, start + tokens
    return result


def _batch(start: int, lengths: Sequence[int], longest: int, device: torch.device) -> Batch:
    sizes = torch.tensor(lengths)
    tokens, count = slice(start, start + sum(lengths)), len(lengths)
    if min(lengths) == longest:
        return Batch(tokens, count, longest)
    position = torch.arange(longest)
    visible = position < sizes[:, None]  # [count, longest]
    places = torch.minimum(position, sizes[:, None] - 1) + (start + sizes.cumsum(0) - sizes)[:, None]
    kept = visible.flatten().nonzero()[:, 0]
    return Batch(
        tokens,
        count,
        longest,
        upload(places.flatten(), torch.long, device),
        upload(visible[:, None, None], torch.bool, device),
        upload(kept, torch.long, device),
    )


class BidirectionalAttention(nn.Module):
    """Multi-head self-attention with biases, over whole rows."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(hidden_size, *[hidden_size] * 3, bias=True)
        self.out = Linear(hidden_size, hidden_size, bias=True)

    def forward(self, x: Tensor, grouped: Sequence[Batch]) -> Tensor:
        """x [N, hidden] -> [N, hidden]. `grouped`: the rows of the step, see `batches`."""
        qkv = self.qkv(x)
        parts = []
        for batch in grouped:
            chosen = qkv[batch.tokens] if batch.places is None else qkv.index_select(0, batch.places)
            heads = chosen.view(batch.count, batch.longest, 3, self.num_heads, -1)
            q, k, v = heads.permute(2, 0, 3, 1, 4)  # [count, H, longest, D] each
            mixed = F.scaled_dot_product_attention(q, k, v, batch.visible)
            flat = mixed.transpose(1, 2).reshape(batch.count * batch.longest, -1)
            parts.append(flat if batch.kept is None else flat.index_select(0, batch.kept))
        return self.out(parts[0] if len(parts) == 1 else torch.cat(parts))
