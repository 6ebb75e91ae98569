"""Rows of finished requests, kept so that prompts that begin like them need not be computed again.

How much of a row a prompt can share depends on `exact`. A prompt is computed in pieces, and the bits of a token's keys
and values depend on the piece that it was in, and on whether it was a prompt's or a reply's. So exactly shared prefixes
end where a piece of both prompts ends; otherwise, anywhere in the row.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from engine.cache.state import State
from engine.decoding.sequence import Sequence, common_prefix

MIN_SHARED = 16  # tokens; a shorter common beginning is computed again, as a row in two parts costs more


@dataclass(eq=False)
class Prompt:
    """Token ids, and the lengths at which the pieces end in which they are computed. The last is the whole prompt."""

    ids: list[int]
    ends: list[int]
    scope: Hashable = None  # only prompts of the same scope share anything

    @staticmethod
    def plan(ids: Seq[int], chunk: int, cuts: Seq[int] = (), scope: Hashable = None) -> Prompt:
        """Pieces that end at the multiples of `chunk` and at the cuts."""
        inner = {*range(chunk, len(ids), chunk), *(cut for cut in cuts if 0 < cut < len(ids))}
        return Prompt(list(ids), [*sorted(inner), len(ids)], scope)

    def common_end(self, other: Prompt) -> int:
        """The last length, but that of the whole prompt, up to which both have the same ids in the same pieces."""
        start = 0
        for end, other_end in zip(self.ends[:-1], other.ends, strict=False):
            if self.scope != other.scope or end != other_end or self.ids[start:end] != other.ids[start:end]:
                break
            start = end
        return start

    def common_length(self, other: Prompt, ids: Seq[int]) -> int:
        """Length of the common prefix with the ids in another's row, but at most all tokens but one."""
        return min(common_prefix(self.ids, ids), len(self.ids) - 1) if self.scope == other.scope else 0


@dataclass(eq=False)
class Row:
    """A sequence, and the prompt that was or is being computed in it."""

    sequence: Sequence
    prompt: Prompt


class PrefixCache:
    """Rows of finished requests, the least recently used first. `max_bytes`: of all rows of the state."""

    def __init__(self, state: State, max_bytes: int, exact: bool) -> None:
        self.state = state
        self.max_bytes = max_bytes
        self.exact = exact
        self.rows: list[Row] = []

    def find(self, prompt: Prompt, running: Iterable[Row], present: Row | None = None) -> tuple[Row | None, int]:
        """The row, of these or the finished ones, that has the longest beginning of a prompt, and its length.

        None, unless that is longer than what the prompt's own row has at present.
        """
        source, length = None, 0 if present is None else len(present.sequence.ids)
        for row in (*self.rows, *running):
            shared = self._shared_length(prompt, row)
            if shared >= length + (1 if self.exact else MIN_SHARED):
                source, length = row, shared
        return source, length

    def _shared_length(self, prompt: Prompt, row: Row) -> int:
        """Tokens of a prompt that can be taken from a row as it is now."""
        sequence = row.sequence
        if not self.exact:
            return self.state.restorable(sequence.row, prompt.common_length(row.prompt, sequence.ids))
        length = min(prompt.common_end(row.prompt), len(sequence.ids))
        end = max((end for end in prompt.ends if end <= length), default=0)
        return self.state.restorable(sequence.row, end)

    def is_worth_waiting(self, row: Row, other: Row) -> bool:
        """Whether the other row is about to have more of this row's prompt than both have now."""
        if self.exact or not self.state.rewinds_anywhere:
            shared = row.prompt.common_end(other.prompt)
        else:
            shared = row.prompt.common_length(other.prompt, other.prompt.ids) - MIN_SHARED
        return shared > max(len(row.sequence.ids), len(other.sequence.ids))

    def give(self, source: Row, row: Row, length: int) -> None:
        """Make the first `length` tokens of the source the content of a row.

        A finished row that is used whole, as in a conversation, becomes the row's own; others share their storage.
        """
        if source in self.rows and length == len(source.sequence.ids):
            self.rows.remove(source)
            row.sequence.close()
            row.sequence = source.sequence
            return
        if source in self.rows:  # it becomes the most recently used
            self.rows.remove(source)
            self.rows.append(source)
        row.sequence.take(source.sequence, length)

    def add(self, row: Row) -> None:
        """Keep the row of a finished request, without the room that it had reserved.

        Rows that it can replace are released, and so is a row without pieces that a prompt could have, too.
        """
        sequence = row.sequence
        if not sequence.ids or not row.prompt.ends:
            sequence.close()
            return
        for other in [other for other in self.rows if other.prompt.scope == row.prompt.scope]:
            ids = other.sequence.ids
            if ids == sequence.ids[: len(ids)] and self.state.restorable(sequence.row, len(ids)) == len(ids):
                self._release(other)
        self.state.compact(sequence.row)
        self.rows.append(row)
        self.has_room(0, 0)

    def has_room(self, nbytes: int, running: int, spared: Row | None = None) -> bool:
        """Whether there is room for so many bytes beside `running` rows. Finished rows but the spared one make room."""
        while self._used_bytes(running) + nbytes > self.max_bytes:
            if not self.evict(spared):
                return False
        return True

    def _used_bytes(self, running: int) -> int:
        """Bytes of all rows. Those that are running have reserved all that they need, but for recurrent ones."""
        used = self.state.nbytes
        return used if self.state.rewinds_anywhere else max(used, running * self.state.row_bytes(0))

    def evict(self, spared: Row | None = None) -> bool:
        """Release the least recently used row but the spared one. False if there is none."""
        row = next((row for row in self.rows if row is not spared), None)
        if row is not None:
            self._release(row)
        return row is not None

    def clear(self) -> None:
        """Release all rows."""
        while self.evict():
            pass

    def _release(self, row: Row) -> None:
        self.rows.remove(row)
        row.sequence.close()
