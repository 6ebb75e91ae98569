"""A `Sequence` is one text with a model: the token ids that are in its row of the state, and the logits after them.

`prefill` makes texts the content of sequences. What is cached already is kept; the rest is computed in chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from engine.cache.state import State, Step
from engine.decoding.images import ImageLibrary, is_image_id
from engine.models.family import Model
from engine.runtime.errors import BareloopError, quote
from engine.text.tokenizer import Tokenizer

PREFILL_CHUNK = 512  # tokens per forward pass: bounds the memory of activations, at full speed on a CPU
BLOCK = 128  # ids that are compared at once


class Sequence:
    """One row of a state, with the token ids that are in it."""

    def __init__(
        self,
        model: Model,
        state: State,
        max_length: int,
        eos_token_ids: Iterable[int] = (),
        tokenizer: Tokenizer | None = None,
        images: ImageLibrary | None = None,
    ) -> None:
        """`images`: to which the ids of images in texts refer; None: there are none."""
        self.model = model
        self.state = state
        self.max_length = max_length
        self.eos_token_ids = frozenset(eos_token_ids)
        self.tokenizer = tokenizer
        self.images = images
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

    def last_logits(self) -> Tensor:
        """The logits [V] after the content. Raises `BareloopError` if the sequence has not been fed."""
        if self.logits is None:
            raise BareloopError("feed a sequence before decoding it")
        return self.logits

    def fork(self, count: int) -> list[Sequence]:
        """Return `count` new sequences with the same content, which share its storage."""
        self.check_open()
        fixed = self.model, self.state, self.max_length, self.eos_token_ids, self.tokenizer, self.images
        forks = [Sequence(*fixed) for _ in range(count)]
        self.state.fork(self.row, [fork.row for fork in forks])
        for fork in forks:
            fork.ids, fork.logits = [*self.ids], self.logits
        return forks

    def take(self, source: Sequence, length: int) -> None:
        """Make the first `length` tokens of another sequence of the state the content, sharing their storage."""
        self.state.fork(source.row, [self.row])
        self.ids = source.ids[: self.state.rewind(self.row, length)]
        self.logits = None

    def synchronize(self) -> None:
        """Make ids and state the same length, after a step that was interrupted between the two, or wrong drafts."""
        del self.ids[self.state.rewind(self.row, len(self.ids)) :]

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
        check_prompt(ids, self.max_length, self.model.config.vocab_size, outputs, self.images)
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
            pack = Step.pack if members[0].images is None else members[0].images.pack
            step = pack(chunks, rows, positions, state.device)
            last = [max(0, stop - max(first, len(texts[i]) - outputs[i])) for i, first, stop in pieces]
            parts = torch.split(members[0].model.forward(step, state, last=last), last)
            for (index, _, _), member, ids, part in zip(pieces, members, chunks, parts, strict=True):
                member.ids += ids
                hidden[index].append(part)
                if checkpoints:
                    state.checkpoint(member.row)
        return starts, [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in hidden]


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
    a, b = (ids if isinstance(ids, list) else list(ids) for ids in (a, b))  # of which slices are compared
    length = min(len(a), len(b))
    start = next((i for i in range(0, length, BLOCK) if a[i : i + BLOCK] != b[i : i + BLOCK]), length)
    pairs = zip(a[start : start + BLOCK], b[start : start + BLOCK], strict=False)
    return start + next((i for i, (x, y) in enumerate(pairs) if x != y), min(length - start, BLOCK))


def check_prompt(
    ids: Seq[int], max_length: int, vocab_size: int, outputs: int = 1, images: ImageLibrary | None = None
) -> None:
    """Raise `BareloopError` unless ids fit into the window and the vocabulary, and are at least `outputs` tokens.

    With `images` they may be those of images.
    """
    if not ids or not 1 <= outputs <= len(ids):
        raise BareloopError(f"a prompt needs at least {max(outputs, 1)} token(s), and this one has {len(ids)}")
    if len(ids) > max_length:
        raise BareloopError(f"the prompt has {len(ids):,} tokens, the model's window is {max_length:,}")
    check_ids(ids, vocab_size, images)


def check_ids(ids: Seq[int], vocab_size: int, images: ImageLibrary | None = None) -> None:
    """Raise `BareloopError` unless all ids are ints in the vocabulary; with `images`, or those of an image."""
    if not all(type(token) is int for token in ids):
        wrong = next(token for token in ids if type(token) is not int)
        raise BareloopError(f"token ids are whole numbers, and these contain {quote(wrong)}")
    tokens = [token for token in ids if not is_image_id(token)] if max(ids) >= vocab_size else ids
    if len(tokens) < len(ids) and images is None:
        raise BareloopError("these token ids have an image, which only a prompt of a vision-language model can have")
    if tokens and not 0 <= min(tokens) <= max(tokens) < vocab_size:
        raise BareloopError(f"token ids are 0 to {vocab_size - 1}, and these are {min(tokens)} to {max(tokens)}")
