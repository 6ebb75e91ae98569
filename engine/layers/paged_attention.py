"""Attention over blocks (engine/cache/paged.py): Triton's kernels, or PyTorch's operators where Triton is missing.

Both take all rows of a step at once, so the number of launches does not depend on the rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.cache.paged_view import BLOCK, BlockView
from engine.kernels import gpu
from engine.layers.attention_config import AttentionConfig
from engine.layers.rope import rotate
from engine.runtime.device import upload

GATHERED_TOKENS = 2**18  # keys of all rows of a batch that are gathered at once


def rotate_and_write(
    q: Tensor, k: Tensor, v: Tensor, rotary: tuple[Tensor, Tensor] | None, view: BlockView, layer: int
) -> Tensor:
    """Rotate q [N, H, D] and k [N, Hkv, D], and write keys and values into their blocks. -> the rotated q"""
    ops = gpu.for_rows(q) if view.dtype == q.dtype else None
    keys, values = view.kv[layer]
    if ops is not None:
        return ops.rotate_and_write(q, k, v, *(rotary or (None, None)), keys, values, view.slots)
    if rotary is not None:
        q, k = rotate(q, *rotary), rotate(k, *rotary)
    blocks, places = view.slots // BLOCK, view.slots % BLOCK
    keys[blocks, :, places] = k.detach().to(keys.dtype)
    values[blocks, :, places] = v.detach().to(values.dtype)
    return q


def attend(q: Tensor, view: BlockView, layer: int, config: AttentionConfig) -> Tensor:
    """softmax(scale q kᵀ) v for every token of the step, q [N, H, D] -> [N, H, D]. Keys and values are written."""
    rows = view.rows
    if not rows.counts:
        return q
    ops = gpu.for_rows(q) if view.dtype == q.dtype else None
    if ops is None:
        return _attend_gathered(q, view, layer, config)
    keys, values = view.kv[layer]
    choices = config.window or 0, config.scale, config.softcap or 0.0
    if rows.decoding:
        return ops.decode_attention(q, keys, values, view.table, rows.lines, rows.positions, *choices)
    tiles = rows.tiles(config.num_heads // config.num_kv_heads, config.head_dim)
    return ops.chunk_attention(q, keys, values, view.table, rows.lines, rows.starts, rows.offsets, tiles, *choices)


def _attend_gathered(q: Tensor, view: BlockView, layer: int, config: AttentionConfig) -> Tensor:
    """Gather the keys of all rows, padded to the longest, and attend with a mask, some rows at a time."""
    rows, heads = view.rows, config.num_heads // config.num_kv_heads
    width = -(-rows.longest // BLOCK)
    position = torch.arange(width * BLOCK, device=q.device)
    out = torch.empty_like(q)
    for batch, longest in _batches(view):
        first, count = rows.offsets[:-1][batch], rows.offsets.diff()[batch]
        offset = torch.arange(longest, device=q.device).minimum(count[:, None] - 1)  # repeats a row's last query
        index = first[:, None] + offset  # [B, n]
        blocks = view.table[rows.lines[batch], :width]  # [B, width]
        ends = rows.starts[batch, None] + offset  # [B, n], position of each query
        visible = position <= ends[..., None]  # [B, n, T]
        if config.window is not None:
            visible &= position > ends[..., None] - config.window
        keys, values = (tensor[blocks].transpose(2, 3).flatten(1, 2) for tensor in view.kv[layer])  # [B, T, Hkv, D]
        written = visible.any(1)[..., None, None]  # elsewhere are other rows' numbers, or NaN
        keys, values = (tensor.where(written, 0).transpose(1, 2).to(q.dtype) for tensor in (keys, values))
        queries = q[index].transpose(1, 2)  # [B, H, n, D]
        if config.softcap is None:
            mask = visible[:, None]
            attended = F.scaled_dot_product_attention(queries, keys, values, mask, scale=config.scale, enable_gqa=True)
        else:
            grouped = torch.unflatten(queries, 1, (-1, heads))  # [B, Hkv, G, n, D]
            scores = grouped @ keys[:, :, None].mT * (config.scale / config.softcap)
            scores = (config.softcap * torch.tanh(scores)).masked_fill(~visible[:, None, None], -torch.inf)
            wide = torch.promote_types(q.dtype, torch.float32)
            attended = (scores.softmax(-1, dtype=wide).to(q.dtype) @ values[:, :, None]).flatten(1, 2)
        out[index] = attended.transpose(1, 2)
    return out


def _batches(view: BlockView) -> Iterator[tuple[slice | Tensor, int]]:
    """Rows with similar numbers of new tokens, their indices [B], and the largest of these numbers."""
    rows, limit = view.rows, max(1, GATHERED_TOKENS // view.rows.longest)
    groups: dict[int, list[int]] = {}
    for row, count in enumerate(rows.counts):
        groups.setdefault((count - 1).bit_length(), []).append(row)
    for members in groups.values():
        for first in range(0, len(members), limit):
            batch = members[first : first + limit]
            is_all = len(batch) == len(rows.counts)
            queries = max(rows.counts[row] for row in batch)
            yield slice(None) if is_all else upload(batch, torch.long, rows.lines.device), queries
