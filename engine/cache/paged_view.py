"""The rows of a paged state that one forward pass uses: where its tokens are, on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from engine.kernels.gpu.tiling import tiles
from engine.runtime.device import upload

BLOCK = 16  # tokens of a block


@dataclass(frozen=True)
class StepRows:
    """The rows of a step, the same for all groups of blocks. Tensors are on the device, int32 but for `positions`."""

    counts: Sequence[int]  # new tokens of each row, on the host
    longest: int  # tokens of the longest row, the new ones included
    lines: Tensor  # [R], of the tables
    starts: Tensor  # [R], position of each row's first new token
    offsets: Tensor  # [R + 1], index of each row's first new token in the step
    token_lines: Tensor  # [N], the line of each token's row
    positions: Tensor  # [N], int64
    _tiles: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @staticmethod
    def upload(lines: Sequence[int], starts: Sequence[int], counts: Sequence[int], positions: Tensor) -> StepRows:
        """Describe rows by numbers on the host. `positions` [N] are on the device already."""
        token_lines = [line for line, count in zip(lines, counts, strict=True) for _ in range(count)]
        offsets = [*accumulate(counts, initial=0)]
        numbers = upload([*lines, *starts, *offsets, *token_lines], torch.int32, positions.device)
        rows, tokens = len(lines), len(token_lines)
        line, start, offset, token_line = torch.split(numbers, [rows, rows, rows + 1, tokens])
        longest = max((start + count for start, count in zip(starts, counts, strict=True)), default=0)
        return StepRows(counts, longest, line, start, offset, token_line, positions)

    @property
    def decoding(self) -> bool:
        """Whether each row has one new token."""
        return len(self.counts) == len(self.positions)

    def tiles(self, group: int, head_dim: int) -> Tensor:
        """The tiles of the step's queries for `chunk_attention`: [tiles, 2], int32. The same in all layers."""
        shape = group, head_dim
        if shape not in self._tiles:
            self._tiles[shape] = upload(tiles(self.counts, group, head_dim), torch.int32, self.positions.device)
        return self._tiles[shape]


@dataclass(frozen=True)
class BlockView:
    """One group of blocks in one step."""

    kv: Tensor  # [layers, 2, blocks, kv_heads, BLOCK, head_dim]
    table: Tensor  # [lines, width]: blocks of each row
    window: int | None
    rows: StepRows
    slots: Tensor  # [N], int64: token s % BLOCK of block s // BLOCK is where a new token's keys and values go

    @staticmethod
    def of(kv: Tensor, table: Tensor, window: int | None, rows: StepRows) -> BlockView:
        """The view of a group. The slots are computed on the device."""
        blocks = table[rows.token_lines, rows.positions // BLOCK].long()
        return BlockView(kv, table, window, rows, blocks * BLOCK + rows.positions % BLOCK)

    @property
    def dtype(self) -> torch.dtype:
        return self.kv.dtype

    def tail(self, last: Sequence[int]) -> tuple[BlockView, Tensor]:
        """The view of the `last` tokens of each row alone, and their indices in the step.

        Used after all keys have been written: to these queries the step's other tokens are past.
        """
        rows, ends = self.rows, [*accumulate(self.rows.counts)]
        kept = [row for row, count in enumerate(last) if count > 0]
        counts = [last[row] for row in kept]
        indices = [index for row in kept for index in range(ends[row] - last[row], ends[row])]
        offsets = [*accumulate(counts, initial=0)]
        skipped = [rows.counts[row] - last[row] for row in kept]
        numbers = upload([*indices, *kept, *skipped, *offsets], torch.long, rows.positions.device)
        index, row, skip, offset = torch.split(numbers, [len(indices), len(kept), len(kept), len(offsets)])
        tail = StepRows(
            counts,
            rows.longest,
            rows.lines[row],
            (rows.starts[row] + skip).int(),
            offset.int(),
            rows.token_lines[index],
            rows.positions[index],
        )
        return BlockView(self.kv, self.table, self.window, tail, self.slots[index]), index


@dataclass(frozen=True)
class PagedView:
    """The groups of blocks that one forward pass uses, by layer."""

    views: Sequence[BlockView]
    locations: Sequence[tuple[int, int]]  # of each layer: index of its group, and its layer index there
    commit: Callable[[], None]  # adds the step's tokens to their rows, after the forward pass

    def of(self, layer: int) -> tuple[BlockView, int]:
        """A layer's view of its group, and the layer's index there."""
        group, index = self.locations[layer]
        return self.views[group], index
