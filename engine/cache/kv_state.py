"""KVState: the state of attention, one KV cache per window size, with the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.cache.kv import Cache, View
from engine.cache.state import State, Step, layers_by_window


class KVState(State):
    """One cache for the layers with full attention, one for each window size."""

    rewinds_anywhere = True  # if all layers have windows: within the slack

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        windows: Sequence[int | None] | None = None,
    ) -> None:
        windows = windows or (None,) * layers
        self.device = torch.device(device)
        sizes, self.locations = layers_by_window(windows)
        self.caches = [
            Cache((windows.count(window), kv_heads, head_dim), dtype, self.device, window) for window in sizes
        ]
        self._next = 0

    def acquire(self) -> int:
        row, self._next = self._next, self._next + 1  # never reused, so that a stale number is an error
        for cache in self.caches:
            cache.acquire(row)
        return row

    def release(self, row: int) -> None:
        for cache in self.caches:
            cache.release(row)

    def length(self, row: int) -> int:
        return self.caches[0].length(row)

    @property
    def nbytes(self) -> int:
        return sum(segment.kv.nbytes for cache in self.caches for segment in cache.segments().values())

    def row_bytes(self, tokens: int, shared: int = 0) -> int:
        return sum(cache.row_bytes(tokens, shared) for cache in self.caches)

    def checkpoint(self, row: int) -> None:
        """Nothing to do: keys and values can be rewound to any token."""

    def restorable(self, row: int, position: int) -> int:
        position = min(max(position, 0), self.length(row))
        return position if all(cache.can_rewind(row, position) for cache in self.caches) else 0

    def rewind(self, row: int, position: int) -> int:
        position = self.restorable(row, position)
        for cache in self.caches:
            cache.rewind(row, position)
        return position

    def fork(self, source: int, rows: Sequence[int]) -> None:
        for row in rows:
            if row != source:
                for cache in self.caches:
                    cache.fork(source, row)

    def reserve(self, row: int, tokens: int) -> None:
        for cache in self.caches:
            cache.reserve(row, tokens)

    def compact(self, row: int) -> None:
        for cache in self.caches:
            cache.compact(row)

    def view(self, step: Step) -> StateView:
        """The step's rows, with room for its tokens. Rows must be distinct, with at least one token each."""
        step.check()
        return StateView([cache.view(step) for cache in self.caches], self.locations)


@dataclass(frozen=True)
class StateView:
    """The caches that one forward pass uses, by layer."""

    views: list[View]
    locations: Sequence[tuple[int, int]]  # of each layer: index of its cache, and its layer index there

    def of(self, layer: int) -> tuple[View, int]:
        """A layer's view of its cache, and the layer's index there."""
        cache, index = self.locations[layer]
        return self.views[cache], index

    def pieces(self) -> tuple[list[Tensor], list[int], list[int], list[int], list[int], list[int]]:
        """`View.pieces` of all caches, end to end.

        Then each cache's window (0: none); each layer's cache index, and its layer index there.
        """
        segments: list[Tensor] = []
        counts: list[int] = []
        lengths: list[int] = []
        for view in self.views:
            of_view, row_counts, pieces = view.pieces
            counts += row_counts
            lengths += (number if i % 2 else number + len(segments) for i, number in enumerate(pieces))
            segments += of_view
        windows = [view.cache.window or 0 for view in self.views]
        caches, layers = (list(numbers) for numbers in zip(*self.locations, strict=True))
        return segments, counts, lengths, windows, caches, layers

    def commit(self) -> None:
        """Add the step's tokens to their rows, after the forward pass."""
        for view in self.views:
            view.commit()
