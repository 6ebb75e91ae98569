"""Tiles of a ragged step."""

from __future__ import annotations

from engine.kernels.gpu.tiling import queries_per_tile, rows_per_tile, tiles


def test_tiles_cover_every_query_once():
    for group, head_dim in ((1, 64), (7, 128), (4, 256), (71, 64), (130, 64)):
        step, counts = queries_per_tile(group, head_dim), [0, 1, 200, 7, 0, 61]
        assert step * group <= rows_per_tile(group, head_dim) < 2 * (step + 1) * group
        covered = [(row, first + i) for row, first in tiles(counts, group, head_dim) for i in range(step)]
        expected = [(row, query) for row, count in enumerate(counts) for query in range(count)]
        assert [(row, query) for row, query in covered if query < counts[row]] == expected
