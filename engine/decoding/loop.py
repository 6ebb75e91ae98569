"""THE LOOP: feed a prompt in chunks, choose a token, feed it, choose the next.

A `Sequence` is one conversation with a model: the token ids that are in its row of the state, and the logits after
the last of them. `decode` advances any number of sequences together, one token each per step.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import kernels
from engine.cache.state import State, Step
from engine.decoding.sampling import INVALID, SamplingParams, choose, top_logprobs
from engine.models.family import Model
from engine.runtime.errors import BareloopError, quote
from engine.text.detokenizer import StopStrings
from engine.text.tokenizer import Tokenizer

PREFILL_CHUNK = 512  # tokens per forward pass: bounds the memory of activations, at full speed on a CPU


@dataclass(frozen=True)
class Event:
    """One new token of one sequence. The last event has a finish reason: `stop` or `length`.

    `text` is the text that this token completes: a character of several tokens comes with its last token, and text that
    may be the start of a stop string is held back until that is decided. Log-probabilities are natural logarithms, and
    None unless they were requested.
    """

    sequence: int  # index in the list that is decoded
    token_id: int
    text: str = ""
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] | None = None
    finish_reason: str | None = None


class Sequence:
    """One row of a state, with the token ids that are in it."""

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
        self.ids: list[int] = []  # the tokens in the row
        self.logits: Tensor | None = None  # [V], of the token after them

    def feed(self, ids: Seq[int]) -> int:
        """Make `ids` the content of the row, and return how many of them were cached.

        The longest common prefix with the present content is kept, the rest is computed in chunks, at least one token.
        Raises `BareloopError` if `ids` is empty or longer than the window.
        """
        (cached,), (hidden,) = prefill([self], [ids], [1], checkpoints=True)
        with torch.inference_mode():
            self.logits = self.model.logits(hidden)[0]
        return cached

    def feed_with_logits(self, ids: Seq[int], last: int) -> Tensor:
        """`feed`, and return the logits [last, V] after each of the `last` tokens of `ids`."""
        _, (hidden,) = prefill([self], [ids], [last])
        with torch.inference_mode():
            logits = self.model.logits(hidden)
            self.logits = logits[-1].clone()
        return logits

    def fork(self, count: int) -> list[Sequence]:
        """Return `count` new sequences with the same content, which share its storage."""
        self.check_open()
        forks = [
            Sequence(self.model, self.state, self.max_length, self.eos_token_ids, self.tokenizer) for _ in range(count)
        ]
        self.state.fork(self.row, [fork.row for fork in forks])
        for fork in forks:
            fork.ids, fork.logits = [*self.ids], self.logits
        return forks

    def decode(self, params: SamplingParams, continues: bool = True) -> Iterator[Event]:
        """Generate tokens until a stop rule applies. It may be abandoned at any event, and the sequence fed again."""
        return decode([self], params, continues)

    def clear(self) -> None:
        """Remove all tokens. Used when the row may have NaN in its cache."""
        self.state.rewind(self.row, 0)
        self.ids.clear()
        self.logits = None

    def close(self) -> None:
        """Release the row's memory. The sequence cannot be used afterwards."""
        if not self.closed:
            self.closed, self.logits = True, None
            self.state.release(self.row)

    def rewind_for(self, ids: Seq[int], outputs: int) -> int:
        """Rewind to the longest prefix of `ids` that leaves at least the last `outputs` tokens to be computed.

        Room for the rest is reserved. Return the length of the prefix.
        """
        self.check_open()
        if not ids or not 1 <= outputs <= len(ids):
            raise BareloopError(f"a prompt needs at least {max(outputs, 1)} token(s), and this one has {len(ids)}")
        if len(ids) > self.max_length:
            raise BareloopError(f"the prompt has {len(ids):,} tokens, the model's window is {self.max_length:,}")
        check_ids(ids, self.model.config.vocab_size)
        shared = min(common_prefix(ids, self.ids), len(ids) - outputs)
        self.logits = None
        start = self.state.rewind(self.row, shared)
        del self.ids[start:]
        self.state.reserve(self.row, len(ids) - start)
        return start

    def check_open(self) -> None:
        """Raise `BareloopError` if the sequence is closed."""
        if self.closed:
            raise BareloopError("this sequence is closed; create another")


def prefill(
    sequences: Seq[Sequence],
    texts: Seq[Seq[int]],
    outputs: Seq[int],
    chunk: int = PREFILL_CHUNK,
    checkpoints: bool = False,
) -> tuple[list[int], list[Tensor]]:
    """Make each text the content of its sequence (all of one state), together in steps of up to `chunk` tokens.

    The longest cached prefix of each is kept, but at least its last `outputs` tokens are computed. -> lengths of the
    cached prefixes, and the hidden states [outputs, D] of each text's last tokens. `logits` of the sequences are left
    to the caller.

    `checkpoints`: a state that can only be rewound to checkpoints gets them, one of them before the last `outputs`
    tokens, so that the same text, or a continuation of it, can be fed again.
    """
    starts = [sequence.rewind_for(ids, count) for sequence, ids, count in zip(sequences, texts, outputs, strict=True)]
    hidden: list[list[Tensor]] = [[] for _ in sequences]
    padded = not sequences[0].state.rewinds_anywhere  # recurrent rows are padded to the longest
    checkpoints = checkpoints and padded
    cuts = [len(ids) - count if checkpoints else 0 for ids, count in zip(texts, outputs, strict=True)]
    with torch.inference_mode():
        for pieces in _plan_steps(starts, [len(ids) for ids in texts], chunk, cuts, padded):
            members = [sequences[index] for index, _, _ in pieces]
            state = members[0].state
            chunks = [list(texts[index][first:stop]) for index, first, stop in pieces]
            rows, positions = [member.row for member in members], [first for _, first, _ in pieces]
            step = Step.pack(chunks, rows, positions, state.device)
            last = [max(0, stop - max(first, len(texts[i]) - outputs[i])) for i, first, stop in pieces]
            parts = torch.split(members[0].model.forward(step, state, last=last), last)
            for (index, _, _), member, ids, part in zip(pieces, members, chunks, parts, strict=True):
                member.ids += ids
                hidden[index].append(part)
                if checkpoints:
                    state.checkpoint(member.row)
        return starts, [torch.cat(parts) for parts in hidden]


def _plan_steps(
    starts: Seq[int], stops: Seq[int], chunk: int, cuts: Seq[int], padded: bool
) -> Iterator[list[tuple[int, int, int]]]:
    """Yield the pieces (index, first, stop) of each step: `chunk` tokens in total, one text after the other.

    A piece that starts before its text's cut ends there at the latest. If steps are `padded`, one ends before padding
    would more than double it.
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
    """Length of the longest common prefix."""
    return next((index for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def check_ids(ids: Seq[int], vocab_size: int) -> None:
    """Raise `BareloopError` unless all ids are ints in the vocabulary."""
    if not all(type(token) is int for token in ids):
        wrong = next(token for token in ids if type(token) is not int)
        raise BareloopError(f"token ids are whole numbers, and these contain {quote(wrong)}")
    if not 0 <= min(ids) <= max(ids) < vocab_size:
        raise BareloopError(f"token ids are 0 to {vocab_size - 1}, and these are {min(ids)} to {max(ids)}")


class _Reply:
    """The text that one sequence has generated so far, and its stop rules."""

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

    def push(self, token: int) -> tuple[str, str | None]:
        """The text that a chosen token completes, and the finish reason if it is the last."""
        text, reason = "", None
        if self.detokenizer is not None:
            text = self.stops.push(self.detokenizer.push(token))
        count = len(self.sequence.ids) - self.start + 1
        if token in self.stop_ids or self.stops.found is not None:
            reason = "stop"
        elif count >= self.params.max_new_tokens or len(self.sequence.ids) >= self.sequence.max_length:
            reason = "length"
        if reason is not None and self.detokenizer is not None:
            text += self.stops.push(self.detokenizer.flush())
            text += self.stops.flush()
        return text, reason


def decode(sequences: Seq[Sequence], params: SamplingParams, continues: bool = True) -> Iterator[Event]:
    """Advance all sequences (of one state, each fed) together, one token each per step, until each has stopped.

    Every event leaves every sequence consistent: the chosen token is fed only when the caller asks for the next event.
    `continues`: the text continues the prompt's, so that a space between them is kept.
    Raises `BareloopError` if the logits of a sequence are not finite numbers.
    """
    if len({(id(sequence.state), sequence.row) for sequence in sequences}) < len(sequences) or any(
        sequence.state is not sequences[0].state for sequence in sequences
    ):
        raise BareloopError("sequences that decode together must be distinct rows of one state")
    for sequence in sequences:
        sequence.check_open()
        sequence.state.rewind(sequence.row, len(sequence.ids))  # after an interrupt between the forward pass and `ids`
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
        if INVALID in tokens.values():
            invalid = [active[index].sequence for index in tokens if tokens[index] == INVALID]
            error = _not_finite(invalid[0])
            for sequence in invalid:
                sequence.clear()
            raise error
        logprobs = top_logprobs(logits, chosen, params.logprobs) if params.logprobs else None
        for row, (index, token) in enumerate(tokens.items()):
            text, reason = active[index].push(token)
            if reason is not None:
                del active[index]
            logprob, top = (logprobs[0][row], logprobs[1][row]) if logprobs else (None, None)
            yield Event(index, token, text, logprob, top, reason)
        active = {index: reply for index, reply in active.items() if not reply.sequence.closed}
        if active:
            _feed_tokens([reply.sequence for reply in active.values()], [tokens[index] for index in active])


def _logits(sequence: Sequence) -> Tensor:
    if sequence.logits is None:
        raise BareloopError("feed a sequence before decoding it")
    return sequence.logits


def _feed_tokens(sequences: Seq[Sequence], tokens: Seq[int]) -> None:
    """Feed one token to each sequence, in one step."""
    model, state = sequences[0].model, sequences[0].state
    rows, positions = [sequence.row for sequence in sequences], [len(sequence.ids) for sequence in sequences]
    step = Step.pack([[token] for token in tokens], rows, positions, state.device)
    with torch.inference_mode():
        logits = model.logits(model.forward(step, state))
    for sequence, token, row in zip(sequences, tokens, logits, strict=True):
        sequence.logits = None  # so that an interrupt here does not leave new ids with old logits
        sequence.ids.append(token)
        sequence.logits = row


def _not_finite(sequence: Sequence) -> BareloopError:
    """The error for logits that are NaN or infinite, with the first position at which they are.

    The position is found by bisection over prefixes: once a position is invalid, all later ones are.
    """
    model, ids = sequence.model, sequence.ids

    def is_invalid(length: int) -> bool:
        probe = Sequence(model, model.new_state(), sequence.max_length)
        _, (hidden,) = prefill([probe], [ids[:length]], [1])
        with torch.inference_mode():
            return not bool(model.logits(hidden).amax().isfinite())

    position = min(bisect_left(range(1, len(ids) + 1), True, key=is_invalid), len(ids) - 1)
    half = model.dtype == torch.float16
    remedy = "float16 may have overflowed: use --dtype bfloat16 or float32" if half else "the checkpoint may be damaged"
    return BareloopError(
        f"{model.source}: the logits are not finite numbers, first at position {position} of {len(ids):,}; {remedy}"
    )
