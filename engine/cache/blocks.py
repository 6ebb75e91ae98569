"""Blocks of keys and values, and which row has which: the host's side of a paged cache (paged.py)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.cache.paged_view import BLOCK
from engine.cache.state import rewind_slack
from engine.runtime.device import upload
from engine.runtime.errors import BareloopError

SPARE = 0  # a block that no row owns: padding rows of captured steps write there, and unused entries of tables name it
LARGEST_STEP = 2048  # default of the tokens that a row gets in one step at most, which it needs beyond a window
MAX_COPIES = 256  # blocks that are copied at once


def blocks_of(tokens: int) -> int:
    """Number of blocks that hold so many tokens."""
    return -(-tokens // BLOCK)


@dataclass
class Row:
    """The blocks of one row, in order. The first `dropped` ones left the window, and are no longer the row's."""

    blocks: list[int] = field(default_factory=list)
    dropped: int = 0
    reserved: int = 0  # blocks that it keeps for itself: those that leave the window serve as room again,
    end: int = 0  # up to this number of all its blocks


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
        self.step = LARGEST_STEP
        self.evict: Callable[[], bool] | None = None  # frees blocks of rows that are only kept; False if there are none
        self.kv = self._zeros(0)
        self.users: list[int] = []  # rows that have each block
        self.free: list[int] = []  # the next one last
        self.table = torch.zeros(0, 0, dtype=torch.int32, device=device)
        self.version = 0  # counts new tensors
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
        return 2**62 if self.window is None else self.window + self.slack + self.step

    def most_blocks(self, tokens: int) -> int:
        """Blocks that a row of so many tokens has at most at one time."""
        return min(blocks_of(tokens), blocks_of(self.most_tokens) + 1)

    def needed_blocks(self, tokens: int, shared: int) -> int:
        """Blocks that a row which grows to so many tokens needs, if its first `shared` ones are another row's, too.

        With a window the other row may leave them, and needs others then; so they count as this row's.
        """
        if self.window is None:
            return blocks_of(tokens) - shared // BLOCK
        most = self.most_blocks(tokens)
        return most if most == blocks_of(tokens) else most + self.most_blocks(shared)

    def acquire(self, row: int) -> None:
        self.rows[row] = Row()

    def release(self, row: int) -> None:
        entry = self.rows.pop(row)
        self._free(entry.blocks[entry.dropped :])

    def can_rewind(self, row: int, position: int) -> bool:
        """Whether the whole window of a token at this position is still cached."""
        first = self.rows[row].dropped * BLOCK
        return first == 0 or position - (self.window or 0) + 1 >= first

    def rewind(self, row: int, position: int) -> int:
        """Remove the blocks after `position` that other rows have, too; its own stay the row's, as room.

        -> the number of its first blocks that are where they were
        """
        entry = self.rows[row]
        if position == 0 and entry.dropped:
            self._free(entry.blocks[entry.dropped :])
            self.rows[row] = Row()
            return 0
        kept = blocks_of(position)
        end = kept + 1 if self.window is None else None  # without a window the row's own come after all shared ones
        if not any(self.users[block] > 1 for block in entry.blocks[kept:end]):
            return len(entry.blocks)
        rest = entry.blocks[kept:]
        entry.blocks[kept:] = [block for block in rest if self.users[block] == 1]
        self._free([block for block in rest if self.users[block] > 1])
        return kept

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
        entry.reserved = entry.end = 0

    def lacking(self, row: int, length: int, tokens: int) -> int:
        """Blocks that `make_room` with `reserves` would take for a row of `length` tokens."""
        return sum(self._missing(self.rows[row], length, tokens, reserves=True))

    def _missing(self, entry: Row, length: int, tokens: int, reserves: bool) -> tuple[int, bool]:
        """New blocks for so many more tokens, and whether the last one, which is shared, must be copied."""
        is_copied = tokens > 0 and length % BLOCK != 0 and self.users[entry.blocks[length // BLOCK]] > 1
        missing = blocks_of(length + tokens) - len(entry.blocks)
        if reserves and self.window is not None:
            # Own blocks that leave the window serve as room again, so more than a row has at one time are never needed.
            missing = min(missing, self.most_blocks(2**62) - self._own(entry) - is_copied)
        return max(missing, 0), is_copied

    def _own(self, entry: Row) -> int:
        """Blocks that no other row has."""
        return sum(self.users[block] == 1 for block in entry.blocks[entry.dropped :])

    def make_room(self, row: int, line: int, length: int, tokens: int, known: int, reserves: bool = False) -> None:
        """Give a row of `length` tokens blocks of its own for so many more.

        `reserves`: as many as it needs at the same time, which it keeps. `known`: blocks of the row whose entries are
        in its line of the table.
        """
        entry = self.rows[row]
        if self.window is not None:
            self._drop(entry, length)
        self._ensure_free(lambda: sum(self._missing(entry, length, tokens, reserves)))
        missing, is_copied = self._missing(entry, length, tokens, reserves)
        if is_copied:
            shared = entry.blocks[length // BLOCK]
            entry.blocks[length // BLOCK] = own = self._take()
            self._copies[own] = self._copies.get(shared, shared)
            self._free([shared])
            known = min(known, length // BLOCK)
        entry.blocks += [self._take() for _ in range(missing)]
        if reserves and self.window is not None:
            entry.end = blocks_of(length + tokens)
            entry.reserved = min(self._own(entry) + entry.end - len(entry.blocks), self.most_blocks(2**62))
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
            self.version += 1

    def _drop(self, entry: Row, length: int) -> None:
        """Remove the blocks before the window and the slack, but keep the row's own as room, up to its reservation."""
        assert self.window is not None
        first = max(0, length - self.window - self.slack) // BLOCK
        own = self._own(entry) if first > entry.dropped else 0
        for block in entry.blocks[entry.dropped : first]:
            entry.dropped += 1
            if self.users[block] == 1 and own <= entry.reserved and len(entry.blocks) < entry.end:
                entry.blocks.append(block)
                continue
            own -= self.users[block] == 1
            self._free([block])

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

    def _ensure_free(self, needed: Callable[[], int]) -> None:
        """Release kept rows, or grow, until so many blocks are free, which may be fewer once rows are released.

        Raises `BareloopError` if capacity or memory does not allow it.
        """
        while len(self.free) < needed() and self.evict is not None and self.evict():
            pass
        missing = needed() - len(self.free)
        if missing <= 0:
            return
        if self.capacity is not None:
            raise BareloopError(
                f"no room for {needed() * BLOCK:,} more tokens: of the {self.capacity:,} blocks of {BLOCK} tokens "
                f"{len(self.free):,} are free; use a shorter context, fewer sequences or a larger --gpu-memory"
            )
        old = len(self.users)
        least = max(old, 1) + missing
        try:
            self._grow(max(least, 2 * old))
        except BareloopError:
            self._grow(least)  # if there is no memory for twice as many

    def _grow(self, blocks: int) -> None:
        old, grown = len(self.users), self._zeros(blocks)
        with torch.inference_mode():
            grown[:, :, :old] = self.kv
        self.kv = grown
        self.version += 1
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
    """What is allocated at once for a state: `nbytes`, for `rows` rows of up to `tokens` tokens at the same time.

    `kept`: other rows, which may have blocks as long as there are enough.
    """

    nbytes: int
    rows: int
    tokens: int
    kept: int = 0
    step: int = LARGEST_STEP  # tokens of one row in a step

    def divide(self, groups: Sequence[BlockGroup]) -> list[int]:
        """Blocks for each group. One with a window needs fewer than one without if rows are long, and as many if not.

        It gets as many, but not more than all rows, and one whose beginning another takes, have at the same time. If
        the longest row does not fit then, windows get fewer: in proportion to the longest row they always fit.
        """
        longest = [group.most_blocks(self.tokens) for group in groups]

        def blocks(most: int, rows: int) -> list[int]:
            return [min(most, max(rows * own, -(-most * own // max(longest)))) for own in longest]

        rows = self.rows + 1
        while True:

            def nbytes(most: int, rows: int = rows) -> int:
                counts = zip(blocks(most, rows), groups, strict=True)
                return sum(count * group.block_bytes for count, group in counts)

            most = max(1, bisect_right(range(1, 1 + self.nbytes), self.nbytes, key=nbytes))
            if most >= max(longest) or rows == 1:
                return blocks(most, rows)
            rows = max(1, rows // 2)
