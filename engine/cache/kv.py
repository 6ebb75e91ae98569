"""The KV cache: keys and values of several layers, for many rows, with shared prefixes.

A row is a list of spans over segments. A segment is one growable tensor of keys and values. Forked rows share the
segments of their common prefix, and each appends to a segment of its own:

    row 0   [ few-shot examples ........ | question 0 ]
    row 1   [ same segment               | question 1 ]

A row appends to its last segment as long as no other row uses the positions after its end; otherwise it continues in
a new segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from engine.cache.state import Step, rewind_slack
from engine.runtime.errors import BareloopError

GRANULE = 4  # capacities are multiples of this many tokens


class Segment:
    """Keys and values of a run of tokens, [layers, 2, kv_heads, capacity, head_dim]."""

    def __init__(self, kv: Tensor) -> None:
        self.kv = kv
        self.users = 1  # rows with a span over this segment

    @property
    def capacity(self) -> int:
        return self.kv.shape[3]


@dataclass
class Span:
    """The first `length` tokens of a segment, as part of one row."""

    segment: Segment
    length: int


@dataclass(frozen=True)
class RowView:
    """One row of a step: its new tokens, and the spans of its past."""

    queries: slice
    start: int  # position of the first new token
    first: int  # position of the oldest cached token; older ones were dropped (windows)
    past: tuple[tuple[Segment, int], ...]  # segments and lengths; the last may be the target, up to `offset`
    target: Segment  # the segment for its new keys and values, from `offset` on
    offset: int

    @property
    def count(self) -> int:
        return self.queries.stop - self.queries.start

    @property
    def pieces(self) -> tuple[tuple[Segment, int], ...]:
        """Segments and lengths of all keys, the new ones included, once they are written."""
        other_segments = self.past[:-1] if self.offset else self.past  # the target itself may have the end of the past
        return (*other_segments, (self.target, self.offset + self.count))


class View:
    """The rows of a cache that one forward pass uses.

    Lengths change only in `commit`, so an abandoned forward pass adds nothing.
    """

    def __init__(self, cache: Cache, rows: list[RowView], owners: list[int]) -> None:
        self.cache = cache
        self.rows = rows
        self.owners = owners

    @cached_property
    def pieces(self) -> tuple[list[Tensor], list[int], list[int]]:
        """All segments; the numbers of new tokens and of pieces of each row; the segment and length of each piece."""
        pieces = [piece for row in self.rows for piece in row.pieces]
        segments = list({id(segment): segment for segment, _ in pieces}.values())
        index = {id(segment): i for i, segment in enumerate(segments)}
        rows = [number for row in self.rows for number in (row.count, len(row.pieces))]
        lengths = [number for segment, length in pieces for number in (index[id(segment)], length)]
        return [segment.kv for segment in segments], rows, lengths

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store the step's keys and values, [N, kv_heads, head_dim] each, in the segments of their rows."""
        for row in self.rows:
            new = row.target.kv[layer, :, :, row.offset : row.offset + row.count]
            new[0].copy_(keys.detach()[row.queries].transpose(0, 1))
            new[1].copy_(values.detach()[row.queries].transpose(0, 1))

    def tail(self, last: Sequence[int]) -> tuple[View, Tensor]:
        """The view of the `last` tokens of each row alone, and their indices in the step.

        Used after all keys have been written: to these queries the step's other tokens are past.
        """
        rows: list[RowView] = []
        indices: list[int] = []
        owners: list[int] = []
        for row, owner, count in zip(self.rows, self.owners, last, strict=True):
            if count > 0:
                indices += range(row.queries.stop - count, row.queries.stop)
                skipped = row.count - count
                in_target = ((row.target, row.offset + skipped),) if row.offset + skipped else ()
                queries = slice(len(indices) - count, len(indices))
                past = (*row.pieces[:-1], *in_target)
                rows.append(RowView(queries, row.start + skipped, row.first, past, row.target, row.offset + skipped))
                owners.append(owner)
        return View(self.cache, rows, owners), torch.tensor(indices, device=self.cache.device, dtype=torch.long)

    def commit(self) -> None:
        """Add the step's tokens to their rows, after the forward pass."""
        for index, row in zip(self.owners, self.rows, strict=True):
            self.cache.commit(index, row.count)


class Cache:
    """Keys and values of layers with the same window. Segments grow by doubling, or at once through `reserve`.

    With a window W only the last W + `slack` tokens of a long row are kept; `slack` is how far such a row can be
    rewound.
    """

    def __init__(
        self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, window: int | None
    ) -> None:
        self.shape = shape  # layers, kv_heads, head_dim
        self.dtype = dtype
        self.device = device
        self.window = window
        self.slack = 0 if window is None else rewind_slack(window)
        self._rows: dict[int, list[Span]] = {}
        self._dropped: dict[int, int] = {}  # tokens of a row before its first span

    @property
    def longest(self) -> int | None:
        """Maximum number of cached tokens of a row; beyond it the oldest are dropped before the next step."""
        return None if self.window is None else self.window + 2 * self.slack

    def acquire(self, row: int) -> None:
        self._rows[row] = []
        self._dropped[row] = 0

    def release(self, row: int) -> None:
        del self._dropped[row]
        for span in self._rows.pop(row):
            span.segment.users -= 1

    def length(self, row: int) -> int:
        return self._dropped[row] + sum(span.length for span in self._rows[row])

    def segments(self) -> dict[int, Segment]:
        """All segments by identity."""
        return {id(span.segment): span.segment for row in self._rows.values() for span in row}

    def row_bytes(self, tokens: int, shared: int) -> int:
        layers, kv_heads, head_dim = self.shape
        cached = tokens - shared
        if self.longest is not None and tokens > self.longest:  # it will leave what it shares for a segment of its own
            cached = self.longest
        return 2 * layers * kv_heads * head_dim * cached * self.dtype.itemsize

    def can_rewind(self, row: int, position: int) -> bool:
        """Whether the whole window of a token at this position is still cached."""
        return self._dropped[row] == 0 or position - (self.window or 0) + 1 >= self._dropped[row]

    def rewind(self, row: int, position: int) -> None:
        spans = self._rows[row]
        excess = min(self.length(row) - position, sum(span.length for span in spans))
        while excess > 0:
            removed = min(excess, spans[-1].length)
            spans[-1].length -= removed
            excess -= removed
            if spans[-1].length == 0 and len(spans) > 1:
                spans.pop().segment.users -= 1
        if position == 0:
            self._dropped[row] = 0

    def fork(self, source: int, row: int) -> None:
        self.release(row)
        spans = [Span(span.segment, span.length) for span in self._rows[source] if span.length]
        for span in spans:
            span.segment.users += 1
        self._rows[row], self._dropped[row] = spans, self._dropped[source]

    def reserve(self, row: int, tokens: int) -> None:
        self._make_room(row, tokens if self.longest is None else min(tokens, self.longest), doubles=False)

    def compact(self, row: int) -> None:
        """Copy the row's last segment to one of the size that is used, by this row or another that shares it."""
        spans = self._rows[row]
        if spans and spans[-1].length == 0:
            spans.pop().segment.users -= 1
        if not spans:
            return
        segment, used = spans[-1].segment, spans[-1].length
        if segment.users > 1:
            used = max(span.length for row in self._rows.values() for span in row if span.segment is segment)
        if segment.capacity >= used + GRANULE:
            smaller = self._allocate(used)
            smaller[:, :, :, :used] = segment.kv[:, :, :, :used]
            segment.kv = smaller

    def view(self, step: Step) -> View:
        owners = step.rows.tolist()
        views = []
        for row, queries in zip(owners, step.slices(), strict=True):
            self._drop_old(row)
            tail = self._make_room(row, queries.stop - queries.start)
            past = tuple((span.segment, span.length) for span in self._rows[row] if span.length)
            first = self._dropped[row]
            start = first + sum(length for _, length in past)
            views.append(RowView(queries, start, first, past, tail.segment, tail.length))
        return View(self, views, owners)

    def commit(self, row: int, count: int) -> None:
        """Add `count` tokens that have been written at the row's end."""
        self._rows[row][-1].length += count

    def _drop_old(self, row: int) -> None:
        """Move the window and the slack to a new segment, if the row has outgrown them."""
        spans = self._rows[row]
        cached = sum(span.length for span in spans)
        if self.window is None or self.longest is None or cached <= self.longest:
            return
        kept = self.window + self.slack
        pieces = torch.cat([span.segment.kv[:, :, :, : span.length] for span in spans], dim=3)
        segment = Segment(self._allocate(self.longest))
        segment.kv[:, :, :, :kept] = pieces[:, :, :, cached - kept :]
        for span in spans:
            span.segment.users -= 1
        self._rows[row] = [Span(segment, kept)]
        self._dropped[row] += cached - kept

    def _make_room(self, row: int, tokens: int, doubles: bool = True) -> Span:
        """The row's last span, with room for `tokens` more in its segment that no other row uses.

        `doubles`: a segment that is too short is doubled, so that many short steps copy little.
        """
        spans = self._rows[row]
        if spans and self._may_append(row, spans[-1]):
            tail = spans[-1]
            segment, needed = tail.segment, tail.length + tokens
            if needed <= segment.capacity:
                return tail
            if segment.users == 1:
                doubled = 2 * segment.capacity if self.longest is None else min(2 * segment.capacity, self.longest)
                grown = self._allocate(max(needed, doubled) if tail.length and doubles else needed)
                grown[:, :, :, : tail.length] = segment.kv[:, :, :, : tail.length]
                segment.kv = grown
                return tail
        if spans and spans[-1].length == 0:
            spans.pop().segment.users -= 1
        spans.append(Span(Segment(self._allocate(tokens)), 0))
        return spans[-1]

    def _may_append(self, row: int, tail: Span) -> bool:
        """Whether no other row uses the positions after the tail, or could write there in the same step.

        Of several rows that end at the same position none may append: each continues in a new segment.
        """
        if tail.segment.users == 1:
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
        with torch.inference_mode(False):  # so that it can be written with and without inference mode
            try:
                return torch.empty(shape, dtype=self.dtype, device=self.device)
            except RuntimeError as error:
                gigabytes = torch.Size(shape).numel() * self.dtype.itemsize / 1e9
                raise BareloopError(
                    f"out of memory for the keys and values of {tokens} tokens ({gigabytes:.1f} GB on {self.device}); "
                    "use a shorter context or fewer sequences"
                ) from error
