"""Attention: the projections of one layer, and one `attend` for whole prompts, chunks, decoding and forks.

A step's queries attend to two things: the past of their row, in the cache, and the row's other new tokens, causally.
On a CPU a C++ kernel does all of it; PyTorch's operators serve elsewhere, for other dtypes, and where gradients flow.
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine import kernels
from engine.cache.kv import RowView, View
from engine.cache.paged_view import BlockView
from engine.cache.state import Step
from engine.layers import paged_attention
from engine.layers.attention_config import AttentionConfig
from engine.layers.linear import Linear
from engine.layers.rope import rotate

QUERY_BLOCK = 128  # queries per masked call on a CPU

LayerView = View | BlockView  # of the cache of a layer: on a GPU in blocks
# The view of the tokens whose outputs are needed after the last layer, and their indices in the step; None: all.
Tail = tuple[LayerView, Tensor] | None


class Attention(nn.Module):
    """Grouped-query self-attention."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.qkv = Linear(config.hidden_size, q_size, kv_size, kv_size, bias=config.qkv_bias)
        self.out = Linear(q_size, config.hidden_size, bias=config.out_bias)
        if config.qk_norm is not None:
            sizes = (config.head_dim, config.head_dim) if config.qk_norm_heads else (q_size, kv_size)
            self.q_norm, self.k_norm = config.qk_norm(sizes[0]), config.qk_norm(sizes[1])

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        step: Step,
        view: LayerView | None,
        layer: int,
        tail: Tail,
    ) -> Tensor:
        """x [N, hidden] -> [N, hidden]. The step's keys and values are written into layer `layer` of the view.

        With a `tail` only its tokens attend: -> [tokens of the tail, hidden].
        """
        config = self.config
        qkv = self.qkv(x)
        if config.clip is not None:
            qkv = qkv.clamp(-config.clip, config.clip)
        q, k, v = qkv.split(self.qkv.splits, dim=-1)
        if config.qk_norm is not None and not config.qk_norm_heads:
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.unflatten(-1, (config.num_heads, config.head_dim))  # [N, H, D]
        k = k.unflatten(-1, (config.num_kv_heads, config.head_dim))  # [N, Hkv, D]
        v = v.unflatten(-1, (config.num_kv_heads, config.head_dim))
        if config.qk_norm is not None and config.qk_norm_heads:
            q, k = self.q_norm(q), self.k_norm(k)
        ops = kernels.for_rows(q) if isinstance(view, View) and view.cache.dtype == q.dtype else None
        if isinstance(view, BlockView):
            q = paged_attention.rotate_and_write(q, k, v, rotary, view, layer)
        elif ops is not None and view is not None and view.rows:
            q = ops.rotate_and_write(q, k, v, *(rotary or (None, None)), *view.pieces, layer)
        else:
            if rotary is not None:
                q, k = rotate(q, *rotary), rotate(k, *rotary)
            if view is not None:
                view.write(layer, k, v)
        if tail is not None:
            view, indices = tail
            q = q[indices]
        return self.out(attend(q, k, v, step, view, layer, config).flatten(1))


def attend(
    q: Tensor, k: Tensor, v: Tensor, step: Step, view: LayerView | None, layer: int, config: AttentionConfig
) -> Tensor:
    """softmax(scale q kᵀ) v for every token of the step, over its row's past and new tokens up to itself.

    q [N, H, D]. Keys and values are in `view`; without one they are k and v [N, Hkv, D], and rows start at position 0.
    With a window W a query at position p attends to keys at positions p - W + 1 … p. -> [N, H, D]
    """
    if view is None:
        return _attend_fresh(q, k, v, step, config)
    if isinstance(view, BlockView):
        return paged_attention.attend(q, view, layer, config)
    if not view.rows:
        return q
    ops = kernels.for_rows(q)
    if ops is not None and view.cache.dtype == q.dtype:
        return ops.flash_attention(q, *view.pieces, layer, config.window or 0, config.scale, config.softcap or 0.0)
    return torch.cat([_attend_gathered(q, row, layer, config) for row in view.rows])


def _attend_one(q: Tensor, keys: Tensor, values: Tensor, config: AttentionConfig) -> Tensor:
    """Decoding: one query [1, H, D] over all keys and values [Hkv, T, D], without a mask or copies."""
    packed = q.view(1, len(keys), -1, q.shape[-1])  # the G query heads of a group are G queries
    return _sdpa(packed, keys[None], values[None], config).reshape(q.shape)  # some kernels return another layout


def _attend_fresh(q: Tensor, k: Tensor, v: Tensor, step: Step, config: AttentionConfig) -> Tensor:
    """Rows without a cache. Differentiable; neighbouring rows of the same length are one batch."""
    if config.window is not None or config.softcap is not None:
        return torch.cat([_attend_causal(q[s], k[s], v[s], config) for s in step.slices()])
    runs = [(length, len(list(run))) for length, run in groupby(step.lengths.tolist())]
    sizes = [length * count for length, count in runs]
    parts = []
    for (length, count), *qkv in zip(runs, *(torch.split(x, sizes) for x in (q, k, v)), strict=True):
        queries, keys, values = (x.unflatten(0, (count, length)).transpose(1, 2) for x in qkv)
        out = _sdpa(queries, keys, values, config, causal=True)
        parts.append(out.transpose(1, 2).flatten(0, 1))  # of [count, H, length, D]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend_causal(q: Tensor, k: Tensor, v: Tensor, config: AttentionConfig) -> Tensor:
    """One row from position 0: q, k, v [n, …] among themselves. Differentiable."""
    return _attend_masked(q, k.transpose(0, 1), v.transpose(0, 1), 0, 0, config)


def _attend_gathered(q: Tensor, row: RowView, layer: int, config: AttentionConfig) -> Tensor:
    """One row with its keys concatenated, unless they are in one segment."""
    first = 0 if config.window is None else max(0, row.start - config.window + 1)  # the oldest visible position
    pieces, position = [], row.first
    for segment, length in row.pieces:
        if position + length > first:
            pieces.append(segment.kv[layer, :, :, max(first - position, 0) : length])
        position += length
    keys, values = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)
    if row.count == 1:
        return _attend_one(q[row.queries], keys, values, config)
    return _attend_masked(q[row.queries], keys, values, row.start, first, config)


def _attend_masked(q: Tensor, keys: Tensor, values: Tensor, start: int, first: int, config: AttentionConfig) -> Tensor:
    """Queries [n, H, D] at positions from `start` on, over keys and values [Hkv, T, D] at positions from `first` on.

    torch's CPU kernel also computes the masked part, so there it gets a few queries at a time, with the keys that are
    visible to them. -> [n, H, D]
    """
    queries, window = q.transpose(0, 1)[None], config.window  # [1, H, n, D]
    count = queries.shape[2]
    plain = start == first and (window is None or count <= window) and config.softcap is None
    if plain and (count <= QUERY_BLOCK or q.device.type != "cpu"):
        return _sdpa(queries, keys[None], values[None], config, causal=True)[0].transpose(0, 1)
    block = QUERY_BLOCK if q.device.type == "cpu" else count
    parts = []
    for begin in range(0, count, block):
        end = min(begin + block, count)
        oldest = 0 if window is None else max(0, start + begin - window + 1 - first)  # among the keys
        newest = start + end - first
        position = torch.arange(start + begin, start + end, device=q.device)[:, None]
        distance = position - torch.arange(first + oldest, first + newest, device=q.device)
        mask = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        k, v = keys[None, :, oldest:newest], values[None, :, oldest:newest]
        part = _sdpa(queries[:, :, begin:end], k, v, config, mask)
        parts.append(part[0].transpose(0, 1))
    return torch.cat(parts)


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, config: AttentionConfig, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """softmax(cap(scale q kᵀ)) v for q [B, H, n, D], k and v [B, Hkv, T, D]; `mask` [n, T] is true where visible.

    torch's kernels have no soft cap, so with one the scores are materialized (never with `causal`).
    """
    if config.softcap is None:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=config.scale, enable_gqa=True)
    grouped = torch.unflatten(q, 1, (k.shape[1], -1))  # [B, Hkv, G, n, D]
    scores = config.softcap * torch.tanh(grouped @ k[:, :, None].mT * (config.scale / config.softcap))
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    wide = torch.promote_types(scores.dtype, torch.float32)
    return (scores.softmax(-1, dtype=wide).to(q.dtype) @ v[:, :, None]).flatten(1, 2)
