"""The KV cache on a GPU: keys and values in blocks of 16 tokens (paged attention, Kwon et al. 2023).

    row 0   table [ 4  7  9 ]     block 4   16 tokens, of both rows
    row 1   table [ 4  2 ]        block 2   up to 16 tokens, of row 1 alone

All layers with the same window are one tensor of blocks, in which a block has the same number in every layer. A row is
a list of blocks, its table. Forked rows share the blocks of their common tokens; a block that several rows share is
never written, so a row that goes on inside of one gets a copy of it.

Rows are administered on the host, and nothing there touches the device or waits for it: new table entries and copies
of blocks are collected, and carried out when the next step begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from engine.cache.blocks import BlockGroup, Budget, blocks_of
from engine.cache.paged_view import BlockView, PagedView, StepRows
from engine.cache.state import State, Step, layers_by_window

SIMILAR = 0.8  # share of the wanted bytes with which a state serves


class PagedState(State):
    """One group of blocks for the layers with full attention, one for each window size."""

    rewinds_anywhere = True  # with windows: within the slack

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
        windows: Sequence[int | None] | None = None,
        budget: Budget | None = None,
    ) -> None:
        """`budget`: what is allocated, now and once for all; None: blocks are allocated when they are needed."""
        windows = windows or (None,) * layers
        sizes, self.locations = layers_by_window(windows)
        self.device = torch.device(device)
        self.groups = [
            BlockGroup((windows.count(window), kv_heads, head_dim), dtype, self.device, window) for window in sizes
        ]
        self._lengths: dict[int, int] = {}
        self._lines: dict[int, int] = {}  # of the tables
        self._free_lines: list[int] = []
        self._known: dict[int, int] = {}  # blocks of each row whose entries are in its line of the tables, or collected
        self._next = 0
        self.budget = budget
        if budget is not None:
            for group in self.groups:
                group.step = budget.step
            for group, blocks in zip(self.groups, budget.divide(self.groups), strict=True):
                group.allocate(blocks)
                group.grow_table(1 + budget.rows + budget.kept, blocks_of(budget.tokens))

    def acquire(self) -> int:
        row, self._next = self._next, self._next + 1  # never reused, so that a stale number is an error
        for group in self.groups:
            group.acquire(row)
        line = self._free_lines.pop() if self._free_lines else 1 + len(self._lines)  # line 0 is that of no row
        self._lengths[row], self._lines[row], self._known[row] = 0, line, 0
        return row

    def release(self, row: int) -> None:
        for group in self.groups:
            group.release(row)
        del self._lengths[row], self._known[row]
        self._free_lines.append(self._lines.pop(row))

    def length(self, row: int) -> int:
        return self._lengths[row]

    @property
    def nbytes(self) -> int:
        return self._cost([group.used for group in self.groups])

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all blocks, used or not."""
        return sum(group.kv.nbytes for group in self.groups)

    @property
    def capacity_bytes(self) -> int | None:
        counts = [group.capacity for group in self.groups if group.capacity is not None]
        return self._cost(counts) if counts else None

    def row_bytes(self, tokens: int, shared: int = 0) -> int:
        return self._cost([group.needed_blocks(tokens, shared) for group in self.groups])

    def growth_bytes(self, row: int, tokens: int) -> int:
        length = self._lengths[row]
        return self._cost([group.lacking(row, length, max(0, tokens - length)) for group in self.groups])

    def held_bytes(self, row: int) -> int:
        entries = [group.rows[row] for group in self.groups]
        return self._cost([len(entry.blocks) - entry.dropped for entry in entries])

    def on_shortage(self, evict: Callable[[], bool] | None) -> None:
        for group in self.groups:
            group.evict = evict

    def _cost(self, counts: Sequence[int]) -> int:
        """Bytes of so many blocks of each group.

        With capacities: the share of the scarcest group in all bytes, so that what fits into the bytes fits into every
        group.
        """
        total = sum(group.block_bytes * group.capacity for group in self.groups if group.capacity is not None)
        if not total:
            return sum(count * group.block_bytes for count, group in zip(counts, self.groups, strict=True))
        return max(
            -(-count * total // group.capacity)
            for count, group in zip(counts, self.groups, strict=True)
            if group.capacity is not None
        )

    def checkpoint(self, row: int) -> None:
        """Nothing to do: keys and values can be rewound to any token, with windows within the slack."""

    def restorable(self, row: int, position: int) -> int:
        position = min(max(position, 0), self.length(row))
        return position if all(group.can_rewind(row, position) for group in self.groups) else 0

    def rewind(self, row: int, position: int) -> int:
        position = self.restorable(row, position)
        self._known[row] = min(self._known[row], *(group.rewind(row, position) for group in self.groups))
        self._lengths[row] = position
        return position

    def fork(self, source: int, rows: Sequence[int]) -> None:
        for row in rows:
            if row != source:
                for group in self.groups:
                    group.fork(source, row, self._lengths[source])
                self._lengths[row], self._known[row] = self._lengths[source], 0

    def reserve(self, row: int, tokens: int) -> None:
        if tokens > 0:
            self._make_room(row, tokens, reserves=True)

    def compact(self, row: int) -> None:
        for group in self.groups:
            group.compact(row, self._lengths[row])
        self._forget_entries(row)

    def _make_room(self, row: int, tokens: int, reserves: bool = False) -> None:
        """Give a row blocks for so many more tokens. With `reserves` only those that it has at the same time."""
        for group in self.groups:
            group.make_room(row, self._lines[row], self._lengths[row], tokens, self._known[row], reserves)
        self._known[row] = 2**62
        self._forget_entries(row)

    def _forget_entries(self, row: int) -> None:
        """Count only entries of the tables that are blocks of the row."""
        self._known[row] = min(self._known[row], *(len(group.rows[row].blocks) for group in self.groups))

    def view(self, step: Step) -> PagedView:
        """The step's rows, with room for its tokens. Rows must be distinct, with at least one token each."""
        step.check()
        rows, counts = step.rows.tolist(), step.lengths.tolist()
        lines, starts = self.prepare(rows, counts)
        step_rows = StepRows.upload(lines, starts, counts, step.positions)
        return self.view_of(step_rows, lambda: self.advance(rows, counts))

    def prepare(self, rows: Sequence[int], counts: Sequence[int]) -> tuple[list[int], list[int]]:
        """Give the rows of a step room for their new tokens. -> the line and the length of each row"""
        for row, count in zip(rows, counts, strict=True):
            self._make_room(row, count)
        for group in self.groups:
            group.flush(1 + len(self._lines) + len(self._free_lines))
        return [self._lines[row] for row in rows], [self._lengths[row] for row in rows]

    def view_of(self, rows: StepRows, commit: Callable[[], None]) -> PagedView:
        """The view of rows that are described on the device. `commit`: see `PagedView`."""
        views = [BlockView.of(group.kv, group.table, group.window, rows) for group in self.groups]
        return PagedView(views, self.locations, commit)

    def can_serve(self, budget: Budget) -> bool:
        """Whether this state was allocated for as many rows and as long steps, and for about as many bytes."""
        own = self.budget
        if own is None or own.rows < budget.rows or own.step < budget.step:
            return False
        return SIMILAR * budget.nbytes <= own.nbytes <= budget.nbytes / SIMILAR

    @property
    def version(self) -> int:
        """Changes with the tensors that a view refers to; captured steps are void then."""
        return sum(group.version for group in self.groups)

    def advance(self, rows: Sequence[int], counts: Sequence[int]) -> None:
        """Add the step's tokens to their rows, after the forward pass."""
        for row, count in zip(rows, counts, strict=True):
            self._lengths[row] += count
