"""Rows of finished requests, kept so that prompts that begin like them need not be computed again.

How much of a row a prompt can share depends on `exact`. A prompt is computed in pieces, and the bits of a token's keys
and values depend on the piece that it was in, and on whether it was a prompt's or a reply's. So exactly shared prefixes
end where a piece of both prompts ends; otherwise, anywhere in the row.

A scored prompt, whose log-probabilities are wanted, shares only what another one has of them, too. As it computes all
outputs of a piece, which may take other kernels, exactly shared prefixes are never those of prompts of the other kind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from engine.cache.state import State
from engine.decoding.scheduling.prompt_logprobs import PromptLogprobs
from engine.decoding.sequence import Sequence, common_prefix

MIN_SHARED = 16  # tokens; a shorter common beginning is computed again, as a row in two segments costs more
MAX_KEPT = 256  # finished rows: looking through them costs less than it saves
MAX_SCORED = 2**20  # tokens in finished rows whose log-probabilities are kept: 172 MB, not a part of the cache's bytes


@dataclass(eq=False)
class Prompt:
    """Token ids, and the lengths at which the pieces end in which they are computed. The last is the whole prompt."""

    ids: list[int]
    ends: list[int]
    scope: Hashable = None  # only prompts of the same scope share anything
    scored: bool = False  # whether the log-probabilities of its tokens are wanted

    @staticmethod
    def plan(ids: Seq[int], chunk: int, cuts: Seq[int] = (), scope: Hashable = None, scored: bool = False) -> Prompt:
        """Pieces that end at the multiples of `chunk` and at the cuts."""
        inner = {*range(chunk, len(ids), chunk), *(cut for cut in cuts if 0 < cut < len(ids))}
        return Prompt(list(ids), [*sorted(inner), len(ids)], scope, scored)

    def common_end(self, other: Prompt) -> int:
        """The last length, but that of the whole prompt, up to which both have the same ids in the same pieces."""
        start = 0
        if (self.scope, self.scored) != (other.scope, other.scored):
            return 0
        for end, other_end in zip(self.ends[:-1], other.ends, strict=False):
            if end != other_end or self.ids[start:end] != other.ids[start:end]:
                break
            start = end
        return start

    def common_length(self, other: Prompt, ids: Seq[int]) -> int:
        """Length of the common prefix with the ids in another's slot, but at most all tokens but one."""
        return min(common_prefix(self.ids, ids), len(self.ids) - 1) if self.scope == other.scope else 0


@dataclass(eq=False)
class Slot:
    """A sequence, and the prompt that was or is being computed in it. `logprobs`: of a scored prompt, so far."""

    sequence: Sequence
    prompt: Prompt
    logprobs: PromptLogprobs | None = field(init=False)

    def __post_init__(self) -> None:
        self.logprobs = PromptLogprobs() if self.prompt.scored else None

    @property
    def scored_length(self) -> int:
        """Number of tokens whose log-probabilities are known."""
        return 0 if self.logprobs is None else self.logprobs.length


class PrefixCache:
    """Slots of finished requests. `max_bytes`: of all rows of the state, also of running requests."""

    def __init__(self, state: State, max_bytes: int, exact: bool) -> None:
        self.state = state
        self.max_bytes = max_bytes
        self.exact = exact
        self._slots: dict[Slot, Hashable] = {}  # and their beginnings; the least recently used first
        self._by_beginning: dict[Hashable, list[Slot]] = defaultdict(list)
        self._scored = 0  # tokens whose log-probabilities are kept
        state.on_shortage(self.evict)

    def __len__(self) -> int:
        return len(self._slots)

    def _beginning(self, prompt: Prompt, ids: Seq[int]) -> Hashable:
        """What two texts must have in common to share anything: the first piece, or the first tokens."""
        if self.exact:
            return prompt.scope, prompt.scored, tuple(prompt.ids[: prompt.ends[0]])
        return prompt.scope, tuple(ids[:MIN_SHARED])

    def find(self, prompt: Prompt, running: Iterable[Slot], present: int = 0) -> tuple[Slot | None, int]:
        """The slot, of these or the finished ones, that has the longest beginning of a prompt, and its length.

        None, unless that is longer than `present`, the tokens that the prompt has already.
        """
        source, length = None, present
        for slot in (*self._by_beginning.get(self._beginning(prompt, prompt.ids), ()), *running):
            shared = self._shared_length(prompt, slot)
            if shared >= length + (1 if self.exact else MIN_SHARED):
                source, length = slot, shared
        return source, length

    def _shared_length(self, prompt: Prompt, slot: Slot) -> int:
        """Tokens of a prompt that can be taken from a slot as it is now."""
        sequence, logprobs = slot.sequence, slot.logprobs
        if prompt.scored and logprobs is None:
            return 0
        if self.exact:
            length = min(prompt.common_end(slot.prompt), len(sequence.ids))
            length = max((end for end in prompt.ends if end <= length), default=0)
        else:
            length = prompt.common_length(slot.prompt, sequence.ids)
        if prompt.scored and logprobs is not None:
            length = logprobs.shareable(length)
        return self.state.restorable(sequence.row, length)

    def is_worth_waiting(self, slot: Slot, other: Slot) -> bool:
        """Whether the other slot is about to have more of this slot's prompt than both have now."""
        if self.exact or not self.state.rewinds_anywhere:
            shared = slot.prompt.common_end(other.prompt)
        elif slot.prompt.scored and not other.prompt.scored:
            return False
        else:
            shared = slot.prompt.common_length(other.prompt, other.prompt.ids) - MIN_SHARED
        return shared > max(len(slot.sequence.ids), len(other.sequence.ids))

    def gives_whole(self, source: Slot, length: int) -> bool:
        """Whether `give` hands over the row itself."""
        return source in self._slots and length == len(source.sequence.ids)

    def give(self, source: Slot, slot: Slot, length: int) -> None:
        """Make the first `length` tokens of the source the content of a slot.

        A finished row that is used whole, as in a conversation, becomes the slot's own; others share their storage.
        """
        if slot.logprobs is not None and source.logprobs is not None:
            slot.logprobs = source.logprobs.prefix(length)
        if source in self._slots:
            is_whole = self.gives_whole(source, length)
            beginning = self._remove(source)
            if is_whole:
                slot.sequence.close()
                slot.sequence = source.sequence
                return
            self._insert(source, beginning)  # as the most recently used
        slot.sequence.take(source.sequence, length)

    def add(self, slot: Slot) -> None:
        """Keep the slot of a finished request, without the room that it had reserved.

        Slots that it can replace are released, and so is itself, if it has no pieces that a prompt could have, too.
        """
        sequence = slot.sequence
        if not sequence.ids or not slot.prompt.ends:
            sequence.close()
            return
        beginning = self._beginning(slot.prompt, sequence.ids)
        for other in [*self._by_beginning.get(beginning, ())]:
            ids = other.sequence.ids
            is_restorable = self.state.restorable(sequence.row, len(ids)) == len(ids)
            if is_restorable and ids == sequence.ids[: len(ids)] and slot.scored_length >= other.scored_length:
                self._release(other)
        self.state.compact(sequence.row)
        self._insert(slot, beginning)
        self.make_room(0, 0, 0)

    def make_room(self, nbytes: int, running: int, reserved: int, spared: Slot | None = None) -> bool:
        """Release finished rows but the spared one, until there is room for so many bytes. False if there never is.

        `running`, `reserved`: the number of running requests, and the bytes that they have reserved.
        """
        if reserved + nbytes > self.max_bytes:
            return False
        while self._has_too_many or self._used_bytes(running) + nbytes > self.max_bytes:
            if not self.evict(spared):
                return False
        return True

    @property
    def _has_too_many(self) -> bool:
        return len(self._slots) > MAX_KEPT or self._scored > MAX_SCORED

    def _used_bytes(self, running: int) -> int:
        """Bytes of all rows. Those that are running have reserved all that they need, but for recurrent ones."""
        used = self.state.nbytes
        return used if self.state.rewinds_anywhere else max(used, running * self.state.row_bytes(0))

    def evict(self, spared: Slot | None = None) -> bool:
        """Release the least recently used slot but the spared one. False if there is none."""
        slot = next((slot for slot in self._slots if slot is not spared), None)
        if slot is not None:
            self._release(slot)
        return slot is not None

    def clear(self) -> None:
        """Release all slots."""
        while self.evict():
            pass

    def _insert(self, slot: Slot, beginning: Hashable) -> None:
        self._slots[slot] = beginning
        self._scored += slot.scored_length
        self._by_beginning[beginning].append(slot)

    def _remove(self, slot: Slot) -> Hashable:
        beginning = self._slots.pop(slot)
        self._scored -= slot.scored_length
        self._by_beginning[beginning].remove(slot)
        if not self._by_beginning[beginning]:
            del self._by_beginning[beginning]
        return beginning

    def _release(self, slot: Slot) -> None:
        self._remove(slot)
        slot.sequence.close()
