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

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.cache.paged_view import BLOCK, BlockView, PagedView, StepRows
from engine.cache.state import State, Step, rewind_slack
from engine.runtime.device import upload
from engine.runtime.errors import BareloopError

SPARE = 0  # a block that no row owns: padding rows of captured steps write there, and unused entries of tables name it
LARGEST_STEP = 512  # tokens of one row in a step that `row_bytes` counts on, beyond a window
MAX_COPIES = 256  # blocks that are copied at once


def blocks_of(tokens: int) -> int:
    """Number of blocks that hold so many tokens."""
    return -(-tokens // BLOCK)


@dataclass
class Row:
    """The blocks of one row, in order. The first `dropped` ones left the window, and are no longer the row's."""

    blocks: list[int] = field(default_factory=list)
    dropped: int = 0


class BlockGroup:
    """Keys and values of the layers with one window size: [layers, 2, blocks, kv_heads, BLOCK, head_dim].

    The tensor grows by doubling, unless it is allocated once and for all. `table` [lines, width], int32: the blocks of
    each row; the state knows which line is whose.
    """

    def __init__(
        self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, window: int | None
    ) -> None:
        self.shape = shape  # layers, kv_heads, head_dim
        self.dtype = dtype
        self.device = device
        self.window = window
        self.slack = 0 if window is None else rewind_slack(window)
        self.capacity: int | None = None  # blocks that rows can have
        self.kv = self._zeros(0)
        self.users: list[int] = []  # rows that have each block
        self.free: list[int] = []  # the next one last
        self.table = torch.zeros(0, 0, dtype=torch.int32, device=device)
        self.rows: dict[int, Row] = {}
        self._entries: dict[tuple[int, int], int] = {}  # (line, index) -> block: not yet in the table
        self._copies: dict[int, int] = {}  # block -> the block whose content it gets

    def allocate(self, capacity: int) -> None:
        """Allocate so many blocks, and never more."""
        self._grow(1 + capacity)  # and the spare one
        self.capacity = capacity

    @property
    def used(self) -> int:
        """Blocks that rows have."""
        return max(0, len(self.users) - 1 - len(self.free))

    @property
    def block_bytes(self) -> int:
        layers, kv_heads, head_dim = self.shape
        return 2 * layers * kv_heads * BLOCK * head_dim * self.dtype.itemsize

    @property
    def most_tokens(self) -> int:
        """Tokens that a row has at most at one time, as those before the window are dropped."""
        return 2**62 if self.window is None else self.window + self.slack + LARGEST_STEP

    def most_blocks(self, tokens: int) -> int:
        """Blocks that a row of so many tokens has at most at one time."""
        return min(blocks_of(tokens), blocks_of(self.most_tokens) + 1)

    def acquire(self, row: int) -> None:
        self.rows[row] = Row()

    def release(self, row: int) -> None:
        entry = self.rows.pop(row)
        self._free(entry.blocks[entry.dropped :])

    def can_rewind(self, row: int, position: int) -> bool:
        """Whether the whole window of a token at this position is still cached."""
        first = self.rows[row].dropped * BLOCK
        return first == 0 or position - (self.window or 0) + 1 >= first

    def rewind(self, row: int, position: int) -> None:
        """Remove the blocks after `position` that other rows have, too; its own stay the row's, as room."""
        entry = self.rows[row]
        if position == 0 and entry.dropped:
            self._free(entry.blocks[entry.dropped :])
            self.rows[row] = Row()
            return
        kept = blocks_of(position)
        shared = [block for block in entry.blocks[kept:] if self.users[block] > 1]
        if shared:  # never between the row's own: those come after all shared ones
            self._free(entry.blocks[kept:])
            del entry.blocks[kept:]

    def fork(self, source: int, row: int, length: int) -> None:
        """Make the first `length` tokens of the source, all that it has, those of the row."""
        self.release(row)
        origin = self.rows[source]
        blocks = origin.blocks[: blocks_of(length)]
        for block in blocks[origin.dropped :]:
            self.users[block] += 1
        self.rows[row] = Row(blocks, origin.dropped)

    def compact(self, row: int, length: int) -> None:
        """Free the blocks after the row's tokens."""
        entry = self.rows[row]
        kept = max(blocks_of(length), entry.dropped)
        self._free(entry.blocks[kept:])
        del entry.blocks[kept:]

    def make_room(self, row: int, line: int, length: int, tokens: int, known: int) -> None:
        """Give a row of `length` tokens blocks of its own for so many more.

        `known`: blocks of the row whose entries are in its line of the table.
        """
        entry = self.rows[row]
        if self.window is not None:
            self._drop(entry, length)
        missing = blocks_of(length + tokens) - len(entry.blocks)
        is_copied = length % BLOCK != 0 and tokens > 0 and self.users[entry.blocks[length // BLOCK]] > 1
        self._ensure_free(max(missing, 0) + is_copied)
        if is_copied:
            shared = entry.blocks[length // BLOCK]
            entry.blocks[length // BLOCK] = own = self._take()
            self._copies[own] = self._copies.get(shared, shared)
            self.users[shared] -= 1
            known = min(known, length // BLOCK)
        entry.blocks += [self._take() for _ in range(missing)]
        for index in range(max(known, entry.dropped), len(entry.blocks)):
            self._entries[line, index] = entry.blocks[index]
        if len(self._copies) >= MAX_COPIES:
            self._copy()

    def flush(self, lines: int) -> None:
        """Carry out the collected copies, and write the new entries into the table of at least so many lines."""
        if self._copies:
            self._copy()
        if not self._entries and lines <= len(self.table):
            return
        width = 1 + max((index for _, index in self._entries), default=0)
        self.grow_table(lines, width)
        places = [line * self.table.shape[1] + index for line, index in self._entries]
        numbers = upload([places, [*self._entries.values()]], torch.long, self.device)
        self.table.view(-1).index_copy_(0, numbers[0], numbers[1].int())
        self._entries.clear()

    def grow_table(self, lines: int, width: int) -> None:
        """Make the table at least this large, by doubling."""
        old_lines, old_width = self.table.shape
        if lines > old_lines or width > old_width:
            lines = old_lines if lines <= old_lines else max(lines, 2 * old_lines)
            width = old_width if width <= old_width else max(width, 2 * old_width)
            with torch.inference_mode(False):
                table = torch.zeros(lines, width, dtype=torch.int32, device=self.device)
                table[:old_lines, :old_width] = self.table
            self.table = table

    def _drop(self, entry: Row, length: int) -> None:
        """Free the blocks that are before the window and the slack."""
        assert self.window is not None
        first = max(0, length - self.window - self.slack) // BLOCK
        if first > entry.dropped:
            self._free(entry.blocks[entry.dropped : first])
            entry.dropped = first

    def _copy(self) -> None:
        sources, targets = upload([[*self._copies.values()], [*self._copies]], torch.long, self.device)
        self._copies.clear()
        with torch.inference_mode():
            self.kv.index_copy_(2, targets, self.kv.index_select(2, sources))

    def _take(self) -> int:
        block = self.free.pop()
        self.users[block] = 1
        return block

    def _free(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            self.users[block] -= 1
            if self.users[block] == 0:
                self.free.append(block)
                self._copies.pop(block, None)

    def _ensure_free(self, count: int) -> None:
        """Grow until so many blocks are free. Raises `BareloopError` if capacity or memory does not allow it."""
        missing = count - len(self.free)
        if missing <= 0:
            return
        if self.capacity is not None:
            raise BareloopError(
                f"no room for {count * BLOCK:,} more tokens: all of the {self.capacity:,} blocks of {BLOCK} tokens "
                "are in use; use a shorter context, fewer sequences or a larger --gpu-memory"
            )
        old = len(self.users)
        needed = max(old, 1) + missing
        try:
            self._grow(max(needed, 2 * old))
        except BareloopError:
            self._grow(needed)  # if there is no memory for twice as many

    def _grow(self, blocks: int) -> None:
        old, grown = len(self.users), self._zeros(blocks)
        with torch.inference_mode():
            grown[:, :, :old] = self.kv
        self.kv = grown
        self.users += [0] * (blocks - old)
        self.free = [*range(blocks - 1, max(old, SPARE + 1) - 1, -1), *self.free]

    def _zeros(self, blocks: int) -> Tensor:
        """Zeros, as stale numbers could be NaN, which masks do not remove everywhere."""
        layers, kv_heads, head_dim = self.shape
        shape = (layers, 2, blocks, kv_heads, BLOCK, head_dim)
        with torch.inference_mode(False):  # so that it can be written with and without inference mode
            try:
                return torch.zeros(shape, dtype=self.dtype, device=self.device)
            except RuntimeError as error:
                gigabytes = blocks * self.block_bytes / 1e9
                raise BareloopError(
                    f"out of memory for the keys and values of {blocks * BLOCK:,} tokens ({gigabytes:.1f} GB on "
                    f"{self.device}); use a shorter context, fewer sequences or a smaller --gpu-memory"
                ) from error


@dataclass(frozen=True)
class Budget:
    """What is allocated at once for a state: `nbytes`, for `rows` rows of up to `tokens` tokens at the same time."""

    nbytes: int
    rows: int
    tokens: int

    def divide(self, groups: Sequence[BlockGroup]) -> list[int]:
        """Blocks for each group. One with a window needs fewer than one without if rows are long, and as many if not.

        It gets as many, but not more than all rows have at the same time, or in proportion to the longest row.
        """

        def blocks(most: int) -> list[int]:
            longest = [group.most_blocks(self.tokens) for group in groups]
            return [min(most, max(self.rows * own, -(-most * own // max(longest)))) for own in longest]

        def nbytes(most: int) -> int:
            return sum(count * group.block_bytes for count, group in zip(blocks(most), groups, strict=True))

        most = bisect_right(range(1, 1 + self.nbytes), self.nbytes, key=nbytes)
        return blocks(max(1, most))


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
        sizes = list(dict.fromkeys(windows))
        self.device = torch.device(device)
        self.groups = [
            BlockGroup((windows.count(window), kv_heads, head_dim), dtype, self.device, window) for window in sizes
        ]
        self.locations = [(sizes.index(window), windows[:layer].count(window)) for layer, window in enumerate(windows)]
        self._lengths: dict[int, int] = {}
        self._lines: dict[int, int] = {}  # of the tables
        self._free_lines: list[int] = []
        self._known: dict[int, int] = {}  # blocks of each row whose entries are in its line of the tables, or collected
        self._next = 0
        self._budget = budget
        if budget is not None:
            for group, blocks in zip(self.groups, budget.divide(self.groups), strict=True):
                group.allocate(blocks)
                group.grow_table(2 * budget.rows, blocks_of(budget.tokens))

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
    def capacity_bytes(self) -> int | None:
        counts = [group.capacity for group in self.groups if group.capacity is not None]
        return self._cost(counts) if counts else None

    def row_bytes(self, tokens: int, shared: int = 0) -> int:
        counts = []
        for group in self.groups:
            most = group.most_blocks(tokens)
            leaves_shared = most < blocks_of(tokens)  # the window moves beyond them, and needs as many of its own
            counts.append(most - (0 if leaves_shared else shared // BLOCK))
        return self._cost(counts)

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
        """Nothing to do: keys and values can be rewound to any token."""

    def restorable(self, row: int, position: int) -> int:
        position = min(max(position, 0), self.length(row))
        return position if all(group.can_rewind(row, position) for group in self.groups) else 0

    def rewind(self, row: int, position: int) -> int:
        position = self.restorable(row, position)
        for group in self.groups:
            group.rewind(row, position)
        self._lengths[row] = position
        self._forget_entries(row)
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
            room = min(tokens, group.most_tokens) if reserves else tokens
            group.make_room(row, self._lines[row], self._lengths[row], room, self._known[row])
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
            group.flush(1 + max(self._lines.values()))
        return [self._lines[row] for row in rows], [self._lengths[row] for row in rows]

    def view_of(self, rows: StepRows, commit: Callable[[], None]) -> PagedView:
        """The view of rows that are described on the device. `commit`: see `PagedView`."""
        views = [BlockView.of(group.kv, group.table, group.window, rows) for group in self.groups]
        return PagedView(views, self.locations, commit)

    def can_serve(self, budget: Budget) -> bool:
        """Whether this state was allocated for as many rows, and for no more bytes than the budget has."""
        own = self._budget
        return own is not None and own.rows >= budget.rows and own.nbytes <= budget.nbytes

    @property
    def addresses(self) -> list[int]:
        """Of the tensors that a view refers to: if they change, captured steps are void."""
        return [tensor.data_ptr() for group in self.groups for tensor in (group.kv, group.table)]

    def advance(self, rows: Sequence[int], counts: Sequence[int]) -> None:
        """Add the step's tokens to their rows, after the forward pass."""
        for row, count in zip(rows, counts, strict=True):
            self._lengths[row] += count
