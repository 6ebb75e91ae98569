"""The state of attention: one cache of keys and values per window, with the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.cache.kv import Cache, View
from engine.cache.state import State, Step


class KVState(State):
    """One cache for the layers that see everything, one for those with a window, with the same rows."""

    rewinds_anywhere = True  # within the window, where all layers have one

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
        kinds = list(dict.fromkeys(windows))
        self.caches = [
            Cache((windows.count(window), kv_heads, head_dim), dtype, self.device, window) for window in kinds
        ]
        self.places = [(kinds.index(window), windows[:layer].count(window)) for layer, window in enumerate(windows)]
        self._next = 0

    def acquire(self) -> int:
        row, self._next = self._next, self._next + 1  # never used again, so that a stale one is an error
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

    def row_bytes(self, tokens: int) -> int:
        return sum(cache.row_bytes(tokens) for cache in self.caches)

    def checkpoint(self, row: int) -> None:
        """Keys and values can return anywhere: free."""

    def rewind(self, row: int, position: int) -> int:
        position = min(max(position, 0), self.length(row))
        if not all(cache.can_rewind(row, position) for cache in self.caches):
            position = 0
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

    def view(self, step: Step) -> StateView:
        """The step's rows, with room for its tokens. Rows are distinct, and each brings at least one token."""
        step.check()
        return StateView([cache.view(step) for cache in self.caches], self.places)


@dataclass(frozen=True)
class StateView:
    """What one forward sees of a state, by layer."""

    views: list[View]
    places: Sequence[tuple[int, int]]  # of each layer: its cache, and where it stands there

    def of(self, layer: int) -> tuple[View, int]:
        """A layer's view, and the number of the layer there."""
        cache, place = self.places[layer]
        return self.views[cache], place

    def lone(self) -> tuple[list[Tensor], list[int], list[int], list[int], list[int]] | None:
        """Of all caches what `View.lone` tells, end to end, and each layer's cache and its place there."""
        found = [lone for view in self.views if (lone := view.lone()) is not None]
        if len(found) < len(self.views):
            return None
        tensors = [tensor for lone in found for tensor in lone[0]]
        first = [place for lone in found for place in lone[1]]
        last = [place for lone in found for place in lone[2]]
        kinds, places = (list(numbers) for numbers in zip(*self.places, strict=True))
        return tensors, first, last, kinds, places

    def commit(self) -> None:
        """The forward is through: its tokens now belong to their rows."""
        for view in self.views:
            view.commit()
