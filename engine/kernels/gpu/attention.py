"""Attention over a paged KV cache, in Triton.

Cache: one layer's keys and values are each [blocks, Hkv, BLOCK, D]; a row's token at position p is in the block
tables[line, p // BLOCK], at place p % BLOCK (PagedAttention, Kwon et al. 2023).

Both kernels go through the keys in tiles and never store the matrix of scores: the weighted values are summed under the
highest score so far, and rescaled whenever a higher one comes (`_add_tile`; FlashAttention-2, Dao 2023). Scores are
multiplied by log2(e), so that exp2 serves for exp. All query heads of a key head are rows of one matrix: keys and
values are read once for all of them.

Decoding has one query per row, too few programs for a GPU: a row's keys are divided among several, whose partial sums
`_merge` adds (flash-decoding, Dao et al. 2023). Prompts have enough queries: a program takes a tile of them.
"""

# ruff: noqa: N803  # constants of a compiled kernel have names in capitals

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu.launch import launch
from engine.kernels.gpu.tiling import queries_per_tile, rows_per_tile

MULTIPROCESSORS = 132  # of an H100
MAX_SPLITS = 64
TILE_SIZE = 8192  # elements of a tile of keys, at most
MERGED_COLUMNS = 64  # of a head, for one program of `_merge`
LOWEST = tl.constexpr(-1e30)  # highest score of no keys: finite, because inf - inf would be NaN


def decode_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    lines: Tensor,
    positions: Tensor,
    window: int,
    scale: float,
    softcap: float,
) -> Tensor:
    """softmax(scale q kᵀ) v for one query per row, over the row's keys up to its own: [R, H, D], in q's dtype.

    q [R, H, D]; keys and values [blocks, Hkv, BLOCK, D] of q's dtype, with those of the queries; tables int32
    [lines, width]; lines [R], the rows' lines in it; positions [R], of the queries. A query at position p attends to
    positions max(0, p - window + 1) … p, or 0 … p if `window` is 0; other table entries and contents of the cache are
    arbitrary. scale > 0; with a soft cap c > 0 scores s become c tanh(s / c), 0: none.

    R >= 1. The number of splits depends on shapes only, so a captured graph serves all lengths.
    """
    rows, heads, head_dim = q.shape
    kv_heads = keys.shape[1]
    splits = max(1, min(round(3 * MULTIPROCESSORS / (rows * kv_heads)), MAX_SPLITS, tables.shape[1]))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    parts, part_sums = out, None
    if splits > 1:
        parts = torch.empty(rows, heads, splits, head_dim, device=q.device)
        part_sums = torch.empty(rows, heads, splits, 2, device=q.device)
    constants = _constants(q, keys, window, softcap)
    constants["ROWS"] = max(16, triton.next_power_of_2(heads // kv_heads))
    arguments = (q.contiguous(), keys, values, tables, lines, positions, parts, part_sums, tables.stride(0))
    launch(_decode, (rows, kv_heads, splits), *arguments, *_factors(scale, softcap), **constants)
    if part_sums is not None:
        columns = min(constants["COLUMNS"], MERGED_COLUMNS)
        grid = (rows * heads, -(-head_dim // columns))
        padded = triton.next_power_of_2(splits)
        launch(_merge, grid, parts, part_sums, out, splits, SPLITS=padded, D=head_dim, COLUMNS=columns)
    return out


def chunk_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    lines: Tensor,
    starts: Tensor,
    offsets: Tensor,
    tiles: Tensor,
    window: int,
    scale: float,
    softcap: float,
) -> Tensor:
    """softmax(scale q kᵀ) v for R rows of queries end to end, over each row's keys up to the query: [N, H, D].

    q [N, H, D]; row r has the queries offsets[r] … offsets[r + 1] - 1, at positions starts[r], starts[r] + 1, …;
    lines, starts int32 [R], offsets int32 [R + 1]; tiles int32 [T, 2], from `tiling.tiles` (a tile beyond the queries
    of its row does nothing). The rest as for `decode_attention`.

    Tiles of keys begin at multiples of their size, so a query's sums are in the same order however its row is cut.
    """
    (heads, head_dim), kv_heads = q.shape[1:], keys.shape[1]
    rows = tile_rows = rows_per_tile(heads // kv_heads, head_dim)
    if q.dtype == torch.float32:
        rows = 16  # products without tensor cores need more registers
    elif len(tiles) * kv_heads < 2 * MULTIPROCESSORS:
        rows = min(rows, 64)  # a program for each half of a tile, so that fewer multiprocessors are idle
    constants = _constants(q, keys, window, softcap)
    constants |= {"ROWS": rows, "QUERIES": queries_per_tile(heads // kv_heads, head_dim)}
    constants["num_warps"] = max(4, rows // 16)  # of 16 rows each
    if head_dim > 128:
        constants["num_stages"] = 2  # small GPUs have 99 KB of shared memory
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    arguments = (q.contiguous(), keys, values, tables, lines, starts, offsets, tiles, out, tables.stride(0))
    grid = (len(tiles), kv_heads, tile_rows // rows)
    launch(_chunk, grid, *arguments, *_factors(scale, softcap), **constants)
    return out


def _factors(scale: float, softcap: float) -> tuple[float, float]:
    """`inner` and `outer`: a product s of query and key has the score `outer` s, with a soft cap `outer` tanh(s').

    exp2(`inner` s) is exp(2 s'), of which tanh(s') is computed. Scores are in units of 1 / log2(e), for exp2.
    """
    log2e = math.log2(math.e)
    return (2 * scale / softcap * log2e, softcap * log2e) if softcap else (0.0, scale * log2e)


def _constants(q: Tensor, keys: Tensor, window: int, softcap: float) -> dict[str, Any]:
    """What both kernels are compiled for."""
    kv_heads, block, head_dim = keys.shape[1:]
    columns = max(16, triton.next_power_of_2(head_dim))
    return {
        "GROUP": q.shape[1] // kv_heads,
        "KV_HEADS": kv_heads,
        "BLOCK": block,
        "D": head_dim,
        "COLUMNS": columns,
        "TILE": 16 if q.dtype == torch.float32 else max(16, min(64, TILE_SIZE // columns)),
        "WINDOW": window,
        "CAPPED": softcap > 0,
        "num_warps": 4,
        "num_stages": 3,
    }


@triton.jit  # type: ignore[untyped-decorator]
def _add_tile(  # type: ignore[no-untyped-def]
    total, sums, highest, block,
    q, position, keys, values, table, at, first, end, inner, outer,
    KV_HEADS: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr,
    WINDOW: tl.constexpr, CAPPED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add the keys at positions at … at + TILE - 1 to the sums of queries q [M, COLUMNS] at `position` [M].

    total [M, COLUMNS]: values, weighted with exponentials; sums [M]: of these; highest [M]: score; block [TILE]: of the
    keys. If MASKED, a query sees only the keys up to its position and in its window, and only those in first … end - 1
    are read. Returns the four; the blocks are those of the next tile, so that loads of its keys need not wait for them.
    """
    key, column = at + tl.arange(0, TILE), tl.arange(0, q.shape[1])
    next_block = tl.load(table + (key + TILE) // BLOCK, mask=key + TILE < end, other=0)
    exists = (key >= first) & (key < end) if MASKED else tl.full([TILE], True, tl.int1)
    index = ((block.to(tl.int64) * (KV_HEADS * BLOCK) + key % BLOCK) * D)[:, None] + column[None, :]
    mask = exists[:, None] & (column < D)[None, :]  # for values too: others may be NaN, and 0 * NaN is NaN
    scores = tl.dot(q, tl.trans(tl.load(keys + index, mask=mask, other=0)), input_precision="ieee")
    if CAPPED:
        scores = 1 - 2 / (tl.exp2(scores * inner) + 1)  # tanh
    if MASKED:
        visible = key[None, :] <= position[:, None]
        if WINDOW > 0:
            visible &= key[None, :] > position[:, None] - WINDOW
        scores = tl.where(visible, scores, float("-inf"))
    new_highest = tl.maximum(highest, tl.max(scores, axis=1) * outer)
    rescale = tl.exp2(highest - new_highest)
    weights = tl.exp2(scores * outer - new_highest[:, None])
    sums = sums * rescale + tl.sum(weights, axis=1)
    v = tl.load(values + index, mask=mask, other=0)
    total = tl.dot(weights.to(v.dtype), v, total * rescale[:, None], input_precision="ieee")
    return total, sums, new_highest, next_block


@triton.jit(do_not_specialize=["width"])  # type: ignore[untyped-decorator]
def _decode(  # type: ignore[no-untyped-def]
    q, keys, values, tables, lines, positions, parts, part_sums, width, inner, outer,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, WINDOW: tl.constexpr,
    CAPPED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A row's query heads of one key head, over one part of the visible blocks.

    -> parts [R, H, splits, D]: weighted values; part_sums [R, H, splits, 2]: highest score, sum of exponentials. For a
    single part `part_sums` is None, and `parts` gets the result.
    """
    row, kv_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    splits = tl.num_programs(2)
    position = tl.load(positions + row).to(tl.int32)
    first = tl.maximum(position - WINDOW + 1, 0) if WINDOW > 0 else 0
    first_block = first // BLOCK
    blocks = position // BLOCK + 1 - first_block
    start = tl.maximum((first_block + blocks * split // splits) * BLOCK, first)
    end = tl.minimum((first_block + blocks * (split + 1) // splits) * BLOCK, position + 1)

    head, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    out_head = (row * KV_HEADS + kv_head) * GROUP + head
    mask = (head < GROUP)[:, None] & (column < D)[None, :]
    queries = tl.load(q + out_head[:, None] * D + column[None, :], mask=mask, other=0)
    last = tl.full([ROWS], end - 1, tl.int32)
    keys += kv_head * BLOCK * D
    values += kv_head * BLOCK * D
    table = tables + tl.load(lines + row).to(tl.int64) * width

    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    sums = tl.zeros([ROWS], tl.float32)
    highest = tl.full([ROWS], LOWEST, tl.float32)
    key = start + tl.arange(0, TILE)
    block = tl.load(table + key // BLOCK, mask=key < end, other=0)
    for at in range(start, end, TILE):
        total, sums, highest, block = _add_tile(
            total, sums, highest, block,
            queries, last, keys, values, table, at, start, end, inner, outer,
            KV_HEADS, BLOCK, D, TILE, 0, CAPPED, True,
        )  # fmt: skip

    part = out_head * splits + split
    if part_sums is None:
        total /= sums[:, None]
    else:
        tl.store(part_sums + part * 2, highest, mask=head < GROUP)
        tl.store(part_sums + part * 2 + 1, sums, mask=head < GROUP)
        mask &= (sums > 0)[:, None]
    tl.store(parts + part[:, None] * D + column[None, :], total.to(parts.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["splits"])  # type: ignore[untyped-decorator]
def _merge(parts, part_sums, out, splits, SPLITS: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add the parts of one query head, up to SPLITS. A part without keys has sum 0, and no values were written."""
    head, split = tl.program_id(0).to(tl.int64), tl.arange(0, SPLITS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    part = head * splits + split
    highest = tl.load(part_sums + part * 2, mask=split < splits, other=LOWEST)
    sums = tl.load(part_sums + part * 2 + 1, mask=split < splits, other=0)
    mask = (sums > 0)[:, None] & (column < D)[None, :]
    total = tl.load(parts + part[:, None] * D + column[None, :], mask=mask, other=0)
    rescale = tl.exp2(highest - tl.max(highest, axis=0))
    result = tl.sum(total * rescale[:, None], axis=0) / tl.sum(sums * rescale, axis=0)
    tl.store(out + head * D + column, result.to(out.dtype.element_ty), mask=column < D)


@triton.jit(do_not_specialize=["width"])  # type: ignore[untyped-decorator]
def _chunk(  # type: ignore[no-untyped-def]
    q, keys, values, tables, lines, starts, offsets, tiles, out, width, inner, outer,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, WINDOW: tl.constexpr,
    CAPPED: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """ROWS pairs of a query of one tile and a query head of one key head, over all keys that one of them sees."""
    # The last tile of a long prompt has the most keys: it starts first, so that no multiprocessor is left with it.
    tile, kv_head, first_pair = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1), tl.program_id(2) * ROWS
    row, query = tl.load(tiles + tile * 2), tl.load(tiles + tile * 2 + 1)
    offset, start = tl.load(offsets + row) + query, tl.load(starts + row) + query  # of the tile's first query
    count = tl.minimum(tl.load(offsets + row + 1) - offset, QUERIES)
    begin = first_pair // GROUP  # the queries of this program, among those of the tile
    stop = tl.minimum((first_pair + ROWS - 1) // GROUP + 1, count)
    end = tl.where(begin < stop, start + stop, 0)  # of the keys
    first = tl.maximum(start + begin - WINDOW + 1, 0) if WINDOW > 0 else 0
    first_tile = first // TILE * TILE
    full = 0 if WINDOW > 0 else tl.minimum(start + begin + 1, end) // TILE * TILE  # all queries see all keys before

    pair, column = first_pair + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    out_head = ((offset + pair // GROUP).to(tl.int64) * KV_HEADS + kv_head) * GROUP + pair % GROUP
    index = out_head[:, None] * D + column[None, :]
    mask = (pair < stop * GROUP)[:, None] & (column < D)[None, :]
    queries = tl.load(q + index, mask=mask, other=0)
    position = start + pair // GROUP
    keys += kv_head * BLOCK * D
    values += kv_head * BLOCK * D
    table = tables + tl.load(lines + row).to(tl.int64) * width

    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    sums = tl.zeros([ROWS], tl.float32)
    highest = tl.full([ROWS], LOWEST, tl.float32)
    key = first_tile + tl.arange(0, TILE)
    block = tl.load(table + key // BLOCK, mask=key < end, other=0)
    for at in range(first_tile, full, TILE):
        total, sums, highest, block = _add_tile(
            total, sums, highest, block,
            queries, position, keys, values, table, at, first, end, inner, outer,
            KV_HEADS, BLOCK, D, TILE, WINDOW, CAPPED, False,
        )  # fmt: skip
    for at in range(tl.maximum(first_tile, full), end, TILE):
        total, sums, highest, block = _add_tile(
            total, sums, highest, block,
            queries, position, keys, values, table, at, first, end, inner, outer,
            KV_HEADS, BLOCK, D, TILE, WINDOW, CAPPED, True,
        )  # fmt: skip
    tl.store(out + index, (total / sums[:, None]).to(out.dtype.element_ty), mask=mask)
