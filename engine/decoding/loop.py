"""THE LOOP: choose a token from the logits, feed it, choose the next.

    logits -> choose_tokens -> Reply.accept -> events
      ^                                          |
      +------------- feed_tokens <---------------+

A `Reply` is what one fed sequence generates. `decode` advances several together, one token each per step; the scheduler
does the same with replies that come and go.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from engine import kernels
from engine.cache.state import Step
from engine.decoding.capture import CapturedSteps
from engine.decoding.draws import INVALID
from engine.decoding.grammar import Matcher
from engine.decoding.params import SamplingParams
from engine.decoding.sampling import Context, choose, top_logprobs, unpack_logprobs
from engine.decoding.sequence import Sequence, prefill
from engine.runtime.device import start_download, upload
from engine.runtime.errors import BareloopError, UsageError
from engine.text.detokenizer import StopStrings
from engine.text.tokenizer import Tokenizer


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


class Choice(NamedTuple):
    """A chosen token, with the log-probabilities that were requested."""

    token: int
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] | None = None


class Reply:
    """What one fed sequence generates: the tokens so far, their text, and the stop rules.

    `continues`: the text continues the prompt's, so that a space between them is kept. `matcher`: of the parameters'
    grammar, by default a new one.
    """

    def __init__(
        self, sequence: Sequence, params: SamplingParams, continues: bool = True, matcher: Matcher | None = None
    ) -> None:
        vocab_size = sequence.model.config.vocab_size
        check_params(params, vocab_size, sequence.tokenizer)
        self.sequence = sequence
        self.params = params
        self.start = len(sequence.ids)
        self.token_ids: list[int] = []  # all but the last are in the sequence
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        self.stop_ids = frozenset(params.stop_token_ids) | (
            frozenset() if params.ignore_eos else sequence.eos_token_ids
        )
        self.detokenizer = sequence.tokenizer.detokenizer(continues) if sequence.tokenizer else None
        self.stops = StopStrings(params.stop)
        self.matcher = matcher or new_matcher(params, sequence.tokenizer, vocab_size, sequence.eos_token_ids, continues)

    @property
    def remaining(self) -> int:
        """Number of tokens that may still be generated."""
        return min(self.params.max_new_tokens - len(self.token_ids), self.sequence.max_length - len(self.sequence.ids))

    def contexts(self, draft: Seq[int]) -> Iterator[Context]:
        """What the choice after the sequence depends on, then after each token of the draft."""
        ids, allowed = self.sequence.ids, self.matcher.mask() if self.matcher is not None else None
        for count in range(len(draft) + 1):
            yield Context(self.params, [*ids, *draft[:count]] if count else ids, self.start, self.seed, allowed)

    def accept(self, choices: Seq[Choice], draft: Seq[int] = ()) -> list[Event]:
        """Append the first choice, and the following ones as long as those before them are as drafted.

        The draft has been fed; what differs from the choices is removed again.
        Raises `BareloopError` if the logits of a choice were not finite numbers, or the grammar leads no further.
        """
        events = []
        for choice, drafted in zip(choices, [*draft, None], strict=True):
            if choice.token == INVALID:
                raise _not_finite(self.sequence, self.params)
            events.append(self._push(choice))
            if events[-1].finish_reason is not None or choice.token != drafted:
                break
            self.sequence.ids.append(choice.token)
        if draft:
            self.sequence.synchronize()
        return events

    def _push(self, choice: Choice) -> Event:
        self.token_ids.append(choice.token)
        text, reason = "", None
        if self.detokenizer is not None:
            text = self.stops.push(self.detokenizer.push(choice.token))
        if self.matcher is not None:
            self.matcher.push(choice.token)
        is_complete = self.matcher is not None and self.matcher.stopped
        if choice.token in self.stop_ids or self.stops.found is not None or is_complete:
            reason = "stop"
        elif len(self.token_ids) >= self.params.max_new_tokens or len(self.sequence.ids) >= self.sequence.max_length:
            reason = "length"
        if reason is None and self.matcher is not None:
            self.matcher.mask()  # raises the error of a dead end here, where it is the reply's own
        if reason is not None and self.detokenizer is not None:
            text += self.stops.push(self.detokenizer.flush())
            text += self.stops.flush()
        return Event(0, choice.token, text, choice.logprob, choice.top_logprobs, reason)


def check_params(params: SamplingParams, vocab_size: int, tokenizer: Tokenizer | None) -> None:
    """Raise `BareloopError` for parameters that the model or its lack of a tokenizer does not allow."""
    if params.stop and tokenizer is None:
        raise BareloopError("stop strings need a tokenizer, and this model has none; use stop_token_ids")
    if params.grammar is not None and tokenizer is None:
        raise BareloopError("a grammar needs a tokenizer, and this model has none")
    for token in params.logit_bias or ():
        if not 0 <= token < vocab_size:
            raise UsageError(f"logit_bias has token {token}; the model's tokens are 0 to {vocab_size - 1}")


def new_matcher(
    params: SamplingParams, tokenizer: Tokenizer | None, vocab_size: int, eos_token_ids: Iterable[int], continues: bool
) -> Matcher | None:
    """The matcher of a reply's grammar; None without one."""
    if params.grammar is None or tokenizer is None:
        return None
    return Matcher(params.grammar, tokenizer, vocab_size, eos_token_ids, continues)


def decode(sequences: Seq[Sequence], params: SamplingParams, continues: bool = True) -> Iterator[Event]:
    """Advance all sequences (of one state, each fed) together, one token each per step, until each has stopped.

    It may be abandoned: every event leaves every sequence consistent, because the chosen token is fed only when the
    caller asks for the next event.
    Raises `BareloopError` if the logits of a sequence are not finite numbers.
    """
    if len({(id(sequence.state), sequence.row) for sequence in sequences}) < len(sequences) or any(
        sequence.state is not sequences[0].state for sequence in sequences
    ):
        raise BareloopError("sequences that decode together must be distinct rows of one state")
    for sequence in sequences:
        sequence.check_open()
        sequence.synchronize()
    kernels.adopt()
    active = {index: Reply(sequence, params, continues) for index, sequence in enumerate(sequences)}
    logits = torch.stack([sequence.last_logits() for sequence in sequences]) if sequences else None
    while active and logits is not None:
        choices = choose_tokens([*active.values()], logits)  # <- the next tokens
        invalid = [
            reply.sequence for reply, (choice,) in zip(active.values(), choices, strict=True) if choice.token == INVALID
        ]
        if invalid:
            error = _not_finite(invalid[0], params)
            for sequence in invalid:
                sequence.clear()
            raise error
        for (index, reply), chosen in zip([*active.items()], choices, strict=True):
            (event,) = reply.accept(chosen)
            if event.finish_reason is not None:
                del active[index]
            yield replace(event, sequence=index)
        active = {index: reply for index, reply in active.items() if not reply.sequence.closed}
        if active:
            logits = feed_tokens([*active.values()])
            for reply, row in zip(active.values(), logits, strict=True):
                reply.sequence.logits = row


def choose_tokens(
    replies: Seq[Reply],
    logits: Tensor,
    drafts: Seq[Seq[int]] | None = None,
    begin_next: Callable[[Seq[Reply], Tensor], None] | None = None,
) -> list[list[Choice]]:
    """Choose the next token of every reply; with drafts, one after each drafted token, too.

    logits [N, V]: for each reply in order, those after its sequence, then after each token of its draft. `begin_next`
    is called with the tokens [N] on the device, before this waits for them; it may overwrite the logits.
    """
    drafts = drafts or [()] * len(replies)
    contexts = [list(reply.contexts(draft)) for reply, draft in zip(replies, drafts, strict=True)]
    flat = [context for of_reply in contexts for context in of_reply]
    with torch.inference_mode():
        tokens = choose(logits, flat)
        reported = [row for row, context in enumerate(flat) if context.params.logprobs]
        chosen = start_download(tokens)
        logprobs = start_download(_logprobs(logits, tokens, reported, flat)) if reported else list
        if begin_next is not None:
            begin_next(replies, tokens)
        choices = [Choice(token) for token in chosen()]
        unpacked = unpack_logprobs(logprobs())
        for row, (logprob, best) in zip(reported, unpacked, strict=True):
            if choices[row].token != INVALID:
                choices[row] = Choice(choices[row].token, logprob, best[: flat[row].params.logprobs])
    of_replies = iter(choices)
    return [[next(of_replies) for _ in of_reply] for of_reply in contexts]


def _logprobs(logits: Tensor, tokens: Tensor, rows: Seq[int], contexts: Seq[Context]) -> Tensor:
    """`top_logprobs` of these rows, as many as any of them reports."""
    if len(rows) < len(contexts):
        index = upload(rows, torch.long, logits.device)
        logits, tokens = logits[index], tokens[index]
    return top_logprobs(logits, tokens.clamp(min=0), max(contexts[row].params.logprobs for row in rows))


def feed_tokens(
    replies: Seq[Reply], drafts: Seq[Seq[int]] | None = None, captured: CapturedSteps | None = None
) -> Tensor:
    """Feed every reply's last token and then its draft, in one step. -> the logits after each of them [N, V]

    The drafts are in the rows of the state then, but not yet in the ids of the sequences. `captured`: the same steps as
    CUDA graphs, for replies without drafts; the next step overwrites the logits.
    """
    sequences = [reply.sequence for reply in replies]
    model, state = sequences[0].model, sequences[0].state
    drafts = drafts or [()] * len(replies)
    tokens = [[reply.token_ids[-1], *draft] for reply, draft in zip(replies, drafts, strict=True)]
    rows, positions = [sequence.row for sequence in sequences], [len(sequence.ids) for sequence in sequences]
    logits = None
    if captured is not None and not any(drafts):
        logits = captured.run(rows, [token for (token,) in tokens])
    if logits is None:
        step = Step.pack(tokens, rows, positions, state.device)
        with torch.inference_mode():
            logits = model.logits(model.forward(step, state))
    for sequence, reply in zip(sequences, replies, strict=True):
        sequence.logits = None  # so that an interrupt here does not leave new ids with old logits
        sequence.ids.append(reply.token_ids[-1])
    return logits


def _not_finite(sequence: Sequence, params: SamplingParams) -> BareloopError:
    """The error for logits that are NaN or infinite, with the first position at which they are.

    The model's may be finite; then `logit_bias` excludes all tokens, or all that a grammar allows.

    The position is found by bisection over prefixes: once a position is invalid, all later ones are.
    """
    model, ids = sequence.model, sequence.ids

    def is_invalid(length: int) -> bool:
        probe = Sequence(model, model.new_state(), sequence.max_length, images=sequence.images)
        _, (hidden,) = prefill([probe], [ids[:length]], [1])
        with torch.inference_mode():
            return not bool(model.logits(hidden).amax().isfinite())

    position = bisect_left(range(1, len(ids) + 1), True, key=is_invalid)
    if position == len(ids) and params.logit_bias:
        return BareloopError(f"logit_bias excludes every token that may follow the {len(ids):,} tokens so far")
    position = min(position, len(ids) - 1)
    half = model.dtype == torch.float16
    remedy = "float16 may have overflowed: use --dtype bfloat16 or float32" if half else "the checkpoint may be damaged"
    return BareloopError(
        f"{model.source}: the logits are not finite numbers, first at position {position} of {len(ids):,}; {remedy}"
    )
