"""THE LOOP: feed a prompt in chunks, choose a token, feed it, choose the next.

A `Sequence` is one conversation with a model: exactly the token ids that its row of the state remembers,
and the logits after the last of them. `decode` advances any number of sequences in packed steps.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import kernels
from engine.cache.state import State, Step
from engine.decoding.sampling import SamplingParams, choose, top_logprobs
from engine.models.family import Model
from engine.runtime.errors import BareloopError
from engine.text.detokenizer import StopStrings
from engine.text.tokenizer import Tokenizer

PREFILL_CHUNK = 512  # tokens a forward; bounds the memory of activations, at full speed on a CPU


@dataclass(frozen=True)
class Event:
    """One new token of one sequence. The last one says why it ends: `stop` or `length`.

    `text` is what the token made certain: of a character in several tokens nothing until it is whole, of a
    possible stop string nothing until it is none. Log-probabilities are natural, and there only if asked for.
    """

    sequence: int  # its place in the list that is decoded
    token_id: int
    text: str = ""
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] | None = None
    finish_reason: str | None = None


class Sequence:
    """One row of a state, and what it holds."""

    def __init__(
        self,
        model: Model,
        state: State,
        max_length: int,
        eos_token_ids: Iterable[int] = (),
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.model = model
        self.state = state
        self.max_length = max_length
        self.eos_token_ids = frozenset(eos_token_ids)
        self.tokenizer = tokenizer
        self.row = state.acquire()
        self.closed = False
        self.ids: list[int] = []  # what the row remembers
        self.logits: Tensor | None = None  # [V], of the token after them

    def feed(self, ids: Seq[int]) -> int:
        """Make the sequence stand at the end of `ids`, and return how many of them were still remembered.

        What they share with the tokens held is kept, the rest is computed in chunks: at least one token.
        Raises `BareloopError` where they are none, or more than the window holds.
        """
        (cached,), (hidden,) = prefill([self], [ids], [1], returns=True)
        with torch.inference_mode():
            self.logits = self.model.logits(hidden)[0]
        return cached

    def read(self, ids: Seq[int], last: int) -> Tensor:
        """As `feed`, and the logits [last, V] after each of the `last` tokens of `ids`."""
        _, (hidden,) = prefill([self], [ids], [last])
        with torch.inference_mode():
            logits = self.model.logits(hidden)
            self.logits = logits[-1].clone()
        return logits

    def fork(self, count: int) -> list[Sequence]:
        """`count` more sequences that stand where this one does and share its storage."""
        self.check_open()
        forks = [
            Sequence(self.model, self.state, self.max_length, self.eos_token_ids, self.tokenizer) for _ in range(count)
        ]
        self.state.fork(self.row, [fork.row for fork in forks])
        for fork in forks:
            fork.ids, fork.logits = [*self.ids], self.logits
        return forks

    def decode(self, params: SamplingParams, continues: bool = True) -> Iterator[Event]:
        """Choose and feed tokens until a stop rule ends it; it may be left at any event and fed again."""
        return decode([self], params, continues)

    def close(self) -> None:
        """Give the row's memory back; the sequence is of no further use."""
        if not self.closed:
            self.closed, self.logits = True, None
            self.state.release(self.row)

    def rewind(self, ids: Seq[int], keep: int) -> int:
        """Go back to what is held of `ids` without the last `keep`, make room for the rest, and return its length."""
        self.check_open()
        if not ids or not 1 <= keep <= len(ids):
            raise BareloopError(f"a prompt needs at least {max(keep, 1)} token(s), and this one has {len(ids)}")
        if len(ids) > self.max_length:
            raise BareloopError(f"the prompt has {len(ids):,} tokens, the model's window holds {self.max_length:,}")
        check_ids(ids, self.model.config.vocab_size)
        shared = min(common_prefix(ids, self.ids), len(ids) - keep)
        self.logits = None
        start = self.state.rewind(self.row, shared)
        del self.ids[start:]
        self.state.reserve(self.row, len(ids) - start)
        return start

    def check_open(self) -> None:
        """Refuse a sequence that has given its row back."""
        if self.closed:
            raise BareloopError("this sequence is closed; make another")


def prefill(
    sequences: Seq[Sequence],
    texts: Seq[Seq[int]],
    keep: Seq[int],
    chunk: int = PREFILL_CHUNK,
    returns: bool = False,
) -> tuple[list[int], list[Tensor]]:
    """Make every sequence (of one state) stand at the end of its text, all together in steps of up to `chunk` tokens.

    What each still remembers of its text is kept, but for the last `keep` tokens. -> how many that were, and the
    hidden states [keep, D] of the last ones. Their `logits` are left to the caller.

    With `returns`, a state that can only go back to checkpoints gets them, one before the last `keep` tokens among
    them: so the same text, or one that goes on after it, can be fed again.
    """
    starts = [sequence.rewind(ids, last) for sequence, ids, last in zip(sequences, texts, keep, strict=True)]
    hidden: list[list[Tensor]] = [[] for _ in sequences]
    padded = not sequences[0].state.rewinds_anywhere  # recurrent rows go side by side, filled up to the longest
    marks = returns and padded
    cuts = [len(ids) - last if marks else 0 for ids, last in zip(texts, keep, strict=True)]
    with torch.inference_mode():
        for pieces in _pieces(starts, [len(ids) for ids in texts], chunk, cuts, padded):
            owners = [sequences[index] for index, _, _ in pieces]
            state = owners[0].state
            chunks = [list(texts[index][first:stop]) for index, first, stop in pieces]
            step = Step.pack(chunks, [owner.row for owner in owners], [first for _, first, _ in pieces], state.device)
            wanted = [max(0, stop - max(first, len(texts[i]) - keep[i])) for i, first, stop in pieces]
            parts = torch.split(owners[0].model.forward(step, state, last=wanted), wanted)
            for (index, _, _), owner, ids, part in zip(pieces, owners, chunks, parts, strict=True):
                owner.ids += ids
                hidden[index].append(part)
                if marks:
                    state.checkpoint(owner.row)
        return starts, [torch.cat(parts) for parts in hidden]


def _pieces(
    starts: Seq[int], stops: Seq[int], chunk: int, cuts: Seq[int], padded: bool
) -> Iterator[list[tuple[int, int, int]]]:
    """(index, first, stop) of what each step feeds: `chunk` tokens in all, the texts one after the other.

    No piece reaches beyond its text's cut, if it begins before it. Where steps are `padded`, one ends before filling
    up would make it more than twice as large.
    """
    step: list[tuple[int, int, int]] = []
    room, longest = chunk, 0
    for index, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        first = start
        while first < stop:
            end = min(stop, first + room)
            if first < cuts[index]:
                end = min(end, cuts[index])
            longest = max(longest, end - first)
            if padded and step and (len(step) + 1) * longest > 2 * chunk:
                yield step
                step, room, longest = [], chunk, 0
                continue
            step.append((index, first, end))
            room -= end - first
            first = end
            if room == 0 or first == cuts[index]:
                yield step
                step, room, longest = [], chunk, 0
    if step:
        yield step


def common_prefix(a: Seq[int], b: Seq[int]) -> int:
    """How many tokens two texts share at their beginning."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def check_ids(ids: Seq[int], vocab_size: int) -> None:
    """Refuse what are no ids, and ids that the vocabulary does not have."""
    if not all(type(number) is int for number in ids):
        odd = next(number for number in ids if type(number) is not int)
        raise BareloopError(f"token ids are whole numbers, and these hold {odd!r}")
    if not 0 <= min(ids) <= max(ids) < vocab_size:
        raise BareloopError(f"token ids run from 0 to {vocab_size - 1}, and these from {min(ids)} to {max(ids)}")


class _Reply:
    """What one sequence has written so far, and when to stop."""

    def __init__(self, sequence: Sequence, params: SamplingParams, continues: bool) -> None:
        if params.stop and sequence.tokenizer is None:
            raise BareloopError("stop strings need a tokenizer, and this model has none; use stop_token_ids")
        self.sequence = sequence
        self.params = params
        self.start = len(sequence.ids)
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        self.stop_ids = frozenset(params.stop_token_ids) | (
            frozenset() if params.ignore_eos else sequence.eos_token_ids
        )
        self.detokenizer = sequence.tokenizer.detokenizer(continues) if sequence.tokenizer else None
        self.stops = StopStrings(params.stop)

    def take(self, token: int) -> tuple[str, str | None]:
        """The text that a chosen token makes certain, and the finish reason if it is the last."""
        text, reason = "", None
        if self.detokenizer is not None:
            text = self.stops.push(self.detokenizer.push(token))
        written = len(self.sequence.ids) - self.start + 1
        if token in self.stop_ids or self.stops.found is not None:
            reason = "stop"
        elif written >= self.params.max_new_tokens or len(self.sequence.ids) >= self.sequence.max_length:
            reason = "length"
        if reason is not None and self.detokenizer is not None:
            text += self.stops.push(self.detokenizer.flush())
            text += self.stops.flush()
        return text, reason


def decode(sequences: Seq[Sequence], params: SamplingParams, continues: bool = True) -> Iterator[Event]:
    """Advance all sequences (of one state, each fed) together, a packed step a token, until each has stopped.

    Every event leaves every sequence consistent: its chosen token is fed only when the caller comes back.
    `continues`: the text goes on after the prompt's, so that a space between them is kept.
    """
    if len({(id(sequence.state), sequence.row) for sequence in sequences}) < len(sequences) or any(
        sequence.state is not sequences[0].state for sequence in sequences
    ):
        raise BareloopError("sequences that decode together are distinct rows of one state")
    for sequence in sequences:
        sequence.check_open()
        sequence.state.rewind(sequence.row, len(sequence.ids))  # an interrupt may have hit between forward and ids
    kernels.adopt()
    active = {index: _Reply(sequence, params, continues) for index, sequence in enumerate(sequences)}
    while active:
        replies = list(active.values())
        rows = [_logits(reply.sequence) for reply in replies]
        logits = torch.stack(rows) if len(rows) > 1 else rows[0][None]  # [R, V]
        texts, starts = [reply.sequence.ids for reply in replies], [reply.start for reply in replies]
        with torch.inference_mode():
            chosen = choose(logits, params, texts, starts, [reply.seed for reply in replies])  # <- the next token
        tokens = dict(zip(list(active), chosen.tolist(), strict=True))
        logprobs = top_logprobs(logits, chosen, params.logprobs) if params.logprobs else None
        for place, (index, token) in enumerate(tokens.items()):
            text, reason = active[index].take(token)
            if reason is not None:
                del active[index]
            own, top = (logprobs[0][place], logprobs[1][place]) if logprobs else (None, None)
            yield Event(index, token, text, own, top, reason)
        active = {index: reply for index, reply in active.items() if not reply.sequence.closed}
        if active:
            _feed_one([reply.sequence for reply in active.values()], [tokens[index] for index in active])


def _logits(sequence: Sequence) -> Tensor:
    if sequence.logits is None:
        raise BareloopError("feed a sequence before decoding it")
    return sequence.logits


def _feed_one(sequences: Seq[Sequence], tokens: Seq[int]) -> None:
    """One token each, in one packed step."""
    first = sequences[0]
    step = Step.pack(
        [[token] for token in tokens],
        [sequence.row for sequence in sequences],
        [len(sequence.ids) for sequence in sequences],
        first.state.device,
    )
    with torch.inference_mode():
        logits = first.model.logits(first.model.forward(step, first.state))
    for sequence, token, row in zip(sequences, tokens, logits, strict=True):
        sequence.logits = None  # an interrupt between the lines below must not leave ids with old logits
        sequence.ids.append(token)
        sequence.logits = row
