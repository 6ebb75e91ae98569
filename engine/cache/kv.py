"""What attention remembers: keys and values of every layer, for many rows, with shared prefixes.

A row is a chain of spans over segments. A segment is one growable tensor of keys and values; forked rows
share it and append to segments of their own, so a common prefix is stored once:

    row 0   [ few-shot examples ........ | question 0 ]
    row 1   [ same segment               | question 1 ]

A row appends to its last segment as long as no other row sees what would be written over; else it goes on
in a new segment of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.cache.state import Step
from engine.runtime.errors import BareloopError

GRANULE = 4  # tokens by which room is rounded up
LEAST_SLACK = 64  # tokens that are kept beyond a window


class Segment:
    """Keys and values of a run of tokens, [layers, 2, kv_heads, capacity, head_dim]."""

    def __init__(self, kv: Tensor) -> None:
        self.kv = kv
        self.viewers = 1  # rows with a span on it

    @property
    def capacity(self) -> int:
        return self.kv.shape[3]


@dataclass
class Span:
    """The first `length` tokens of a segment, as one row sees them."""

    segment: Segment
    length: int


@dataclass(frozen=True)
class SharedKeys:
    """Keys that a run of queries attends to in full: every one of the queries sees every one of the keys."""

    queries: slice  # of the step's tokens
    segment: Segment
    length: int


@dataclass(frozen=True)
class RowView:
    """One row of a step: its new tokens, and the spans of what came before them."""

    queries: slice
    start: int  # position of the first new token
    first: int  # position of the first token that is held; what was before is forgotten
    past: tuple[tuple[Segment, int], ...]  # segments and lengths; the last may be the target, up to `offset`
    target: Segment  # where its new keys and values go, from `offset` on
    offset: int

    @property
    def count(self) -> int:
        return self.queries.stop - self.queries.start


class View:
    """What one forward sees of a cache. Lengths move only in `commit`: an abandoned forward has added nothing."""

    def __init__(self, cache: Cache, rows: list[RowView], owners: list[int]) -> None:
        self.cache = cache
        self.rows = rows
        self.owners = owners
        self.past = _shared_blocks(rows)
        self.longest = max((row.start + row.count for row in rows), default=0)  # tokens that some row will have seen
        self.in_one_piece = all(row.count == 1 and row.offset == row.start > 0 for row in rows)  # plain decoding

    def lone(self) -> tuple[list[Tensor], list[int], list[int]] | None:
        """Of rows with one new token each, and all that it sees in one segment: the segments' tensors, and the places
        of the first token that it sees and of the new one. None if a row is not like that.
        """
        if any(row.count != 1 or row.offset != row.start - row.first for row in self.rows):
            return None
        last = [row.offset for row in self.rows]
        window = self.cache.window
        first = [0 if window is None else max(0, place - window + 1) for place in last]
        return [row.target.kv for row in self.rows], first, last

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put the step's keys and values, [N, kv_heads, head_dim] each, where their rows keep them."""
        for row in self.rows:
            place = row.target.kv[layer, :, :, row.offset : row.offset + row.count]
            place[0].copy_(keys.detach()[row.queries].transpose(0, 1))
            place[1].copy_(values.detach()[row.queries].transpose(0, 1))

    def tail(self, last: Sequence[int]) -> tuple[View, Tensor]:
        """The view of only the `last` tokens of each row, once all have been written, and where they stand in the step.

        To these queries the step's other tokens are past.
        """
        rows: list[RowView] = []
        places: list[int] = []
        owners: list[int] = []
        for row, owner, count in zip(self.rows, self.owners, last, strict=True):
            if count > 0:
                places += range(row.queries.stop - count, row.queries.stop)
                skipped = row.count - count
                before = row.past[:-1] if row.offset else row.past  # what lies in other segments than the target
                here = ((row.target, row.offset + skipped),) if row.offset + skipped else ()
                queries = slice(len(places) - count, len(places))
                past = (*before, *here)
                rows.append(RowView(queries, row.start + skipped, row.first, past, row.target, row.offset + skipped))
                owners.append(owner)
        return View(self.cache, rows, owners), torch.tensor(places, device=self.cache.device, dtype=torch.long)

    def commit(self) -> None:
        """The forward is through."""
        for index, row in zip(self.owners, self.rows, strict=True):
            self.cache.commit(index, row.count)


class Cache:
    """Keys and values of some layers, for any number of rows. Memory grows by doubling, or at once through `reserve`.

    With a window W these layers see no further back. Of a row that has outgrown it, the last W and `slack` more
    tokens are kept: so many tokens a row can go back.
    """

    def __init__(
        self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, window: int | None
    ) -> None:
        self.shape = shape  # layers, kv_heads, head_dim
        self.dtype = dtype
        self.device = device
        self.window = window
        self.slack = 0 if window is None else max(LEAST_SLACK, window // 2)
        self._rows: dict[int, list[Span]] = {}
        self._forgotten: dict[int, int] = {}  # tokens of a row before its first span

    @property
    def longest(self) -> int | None:
        """Tokens of a row beyond which the oldest are forgotten, before the next step."""
        return None if self.window is None else self.window + 2 * self.slack

    def acquire(self, row: int) -> None:
        self._rows[row] = []
        self._forgotten[row] = 0

    def release(self, row: int) -> None:
        del self._forgotten[row]
        for span in self._rows.pop(row):
            span.segment.viewers -= 1

    def length(self, row: int) -> int:
        return self._forgotten[row] + sum(span.length for span in self._rows[row])

    def segments(self) -> dict[int, Segment]:
        """All storage by identity."""
        return {id(span.segment): span.segment for row in self._rows.values() for span in row}

    def row_bytes(self, tokens: int) -> int:
        layers, kv_heads, head_dim = self.shape
        held = tokens if self.longest is None else min(tokens, self.longest)
        return 2 * layers * kv_heads * head_dim * held * self.dtype.itemsize

    def can_rewind(self, row: int, position: int) -> bool:
        """Whether all that a token at this position sees is still there."""
        return self._forgotten[row] == 0 or position - (self.window or 0) + 1 >= self._forgotten[row]

    def rewind(self, row: int, position: int) -> None:
        spans = self._rows[row]
        excess = min(self.length(row) - position, sum(span.length for span in spans))
        while excess > 0:
            dropped = min(excess, spans[-1].length)
            spans[-1].length -= dropped
            excess -= dropped
            if spans[-1].length == 0 and len(spans) > 1:
                spans.pop().segment.viewers -= 1
        if position == 0:
            self._forgotten[row] = 0

    def fork(self, source: int, row: int) -> None:
        self.release(row)
        spans = [Span(span.segment, span.length) for span in self._rows[source] if span.length]
        for span in spans:
            span.segment.viewers += 1
        self._rows[row], self._forgotten[row] = spans, self._forgotten[source]

    def reserve(self, row: int, tokens: int) -> None:
        self._room(row, tokens if self.longest is None else min(tokens, self.longest))

    def view(self, step: Step) -> View:
        owners = step.rows.tolist()
        views = []
        for row, queries in zip(owners, step.slices(), strict=True):
            self._forget(row)
            tail = self._room(row, queries.stop - queries.start)
            past = tuple((span.segment, span.length) for span in self._rows[row] if span.length)
            first = self._forgotten[row]
            start = first + sum(length for _, length in past)
            views.append(RowView(queries, start, first, past, tail.segment, tail.length))
        return View(self, views, owners)

    def commit(self, row: int, count: int) -> None:
        """So many tokens have been written at the row's end."""
        self._rows[row][-1].length += count

    def _forget(self, row: int) -> None:
        """Keep what can still be seen, and what may be seen again after a rewind, in a segment of the row's own."""
        spans = self._rows[row]
        held = sum(span.length for span in spans)
        if self.window is None or self.longest is None or held <= self.longest:
            return
        kept = self.window + self.slack
        pieces = torch.cat([span.segment.kv[:, :, :, : span.length] for span in spans], dim=3)
        segment = Segment(self._allocate(self.longest))
        segment.kv[:, :, :, :kept] = pieces[:, :, :, held - kept :]
        for span in spans:
            span.segment.viewers -= 1
        self._rows[row] = [Span(segment, kept)]
        self._forgotten[row] += held - kept

    def _room(self, row: int, tokens: int) -> Span:
        """The row's last span, with room for `tokens` more that nobody else sees."""
        spans = self._rows[row]
        if spans and self._may_append(row, spans[-1]):
            tail = spans[-1]
            segment, needed = tail.segment, tail.length + tokens
            if needed <= segment.capacity:
                return tail
            if segment.viewers == 1:
                doubled = 2 * segment.capacity if self.longest is None else min(2 * segment.capacity, self.longest)
                grown = self._allocate(max(needed, doubled) if tail.length else needed)
                grown[:, :, :, : tail.length] = segment.kv[:, :, :, : tail.length]
                segment.kv = grown
                return tail
        if spans and spans[-1].length == 0:
            spans.pop().segment.viewers -= 1
        spans.append(Span(Segment(self._allocate(tokens)), 0))
        return spans[-1]

    def _may_append(self, row: int, tail: Span) -> bool:
        """Whether no other row sees tokens after the tail's, or could write at the same place in the same step.

        Of rows that all end here none may append: each goes on elsewhere, and the last one left may again.
        """
        if tail.segment.viewers == 1:
            return True
        for other, spans in self._rows.items():
            for span in spans if other != row else ():
                writes_here = span is spans[-1] and span.length == tail.length
                if span.segment is tail.segment and (span.length > tail.length or writes_here):
                    return False
        return True

    def _allocate(self, tokens: int) -> Tensor:
        capacity = -(-tokens // GRANULE) * GRANULE
        layers, kv_heads, head_dim = self.shape
        shape = (layers, 2, kv_heads, capacity, head_dim)
        with torch.inference_mode(False):  # so that it can be written from both modes
            try:
                return torch.empty(shape, dtype=self.dtype, device=self.device)
            except RuntimeError as error:
                gigabytes = torch.Size(shape).numel() * self.dtype.itemsize / 1e9
                raise BareloopError(
                    f"no memory for the keys and values of {tokens} tokens ({gigabytes:.1f} GB on {self.device}); "
                    "use a shorter context or fewer sequences"
                ) from error


def _shared_blocks(rows: list[RowView]) -> list[SharedKeys]:
    """The past of all rows as blocks, with one block for neighbours that share a segment to the same length.

    Sixteen questions on top of one few-shot prefix so become one product over the prefix.
    """
    blocks: list[SharedKeys] = []
    open_blocks: dict[tuple[int, int], int] = {}  # (segment, length) -> its block that ends at the last row
    for row in rows:
        still_open = {}
        for segment, length in row.past:
            key = (id(segment), length)
            index = open_blocks.get(key)
            if index is None:
                index = len(blocks)
                blocks.append(SharedKeys(row.queries, segment, length))
            else:
                blocks[index] = SharedKeys(slice(blocks[index].queries.start, row.queries.stop), segment, length)
            still_open[key] = index
        open_blocks = still_open
    return blocks
