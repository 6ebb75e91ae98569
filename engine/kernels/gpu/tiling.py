"""How a ragged step of queries is cut into tiles for `chunk_attention`. Steps are planned without Triton.

A tile is a matrix with one row for each pair of a query and a query head. It has all heads of a group, so that the
group's keys and values are read once for it: with 7 heads in a group, 18 queries are 126 of 128 rows.
"""

from __future__ import annotations

from collections.abc import Sequence


def rows_per_tile(group: int, head_dim: int) -> int:
    """Pairs of a query and one of the `group` heads of a group; a power of two. Long heads need more registers."""
    return max(128 if head_dim <= 128 else 64, 1 << (group - 1).bit_length())


def queries_per_tile(group: int, head_dim: int) -> int:
    """Queries of a tile, each with all heads of a group."""
    return rows_per_tile(group, head_dim) // group


def tiles(counts: Sequence[int], group: int, head_dim: int) -> list[tuple[int, int]]:
    """(row of the step, first query within the row) of every tile, for rows with these numbers of queries."""
    step = queries_per_tile(group, head_dim)
    return [(row, first) for row, count in enumerate(counts) for first in range(0, count, step)]
