"""Speculative decoding (Leviathan et al. 2023): tokens are drafted cheaply, and several are checked in one step.

The model still chooses every token itself, with the draw that plain decoding would use; a drafted token only saves a
step where it is the one that is chosen. So the text is that of plain decoding, greedy or sampled, whatever is drafted.

How many tokens are drafted follows from how often drafts were right and from what a checked token costs. Both are
measured all the time: where drafting does not pay there is none, but for a try now and then.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Protocol

import torch

from engine import kernels
from engine.decoding.draws import INVALID
from engine.decoding.images import is_image_id
from engine.decoding.loop import Reply
from engine.decoding.sampling import Context, choose
from engine.decoding.sequence import Sequence, prefill
from engine.models.family import Model
from engine.runtime.device import download

TOKEN_COST = 0.12  # of a drafted token, in steps, until it is measured
PRIOR_RATE, PRIOR_WEIGHT = 0.6, 2.0  # of right drafts, as if this many had been seen
KEPT = 0.98  # weight of what was seen before the last draft
MEASURED_FIRST, MEASURED_AGAIN = 2, 50  # steps without drafts at first, and one after so many steps, to know their time
TRIED_AGAIN, MAX_PATIENCE = 16, 64  # steps without drafts, after which one token is drafted to see if it pays now
MIN_MATCH, MAX_MATCH = 2, 16  # tokens that occurred before, of prompt look-up
CANDIDATES = 32  # earlier occurrences that are compared


class Drafter(Protocol):
    """Proposes the tokens that may follow replies."""

    def kinds(self, replies: Seq[Reply]) -> list[int | None]:
        """A class of how sure a draft for each reply would be, which has its own rate; None: there is none."""

    def propose(self, replies: Seq[Reply], counts: Seq[int]) -> list[list[int]]:
        """Up to so many tokens for each reply, after those that were chosen."""

    def forget(self, reply: Reply) -> None:
        """Release what is kept of a reply that has ended."""


@dataclass
class Rate:
    """How often drafted tokens were right, with the latest counting most."""

    right: float = 0.0
    tried: float = 0.0

    @property
    def value(self) -> float:
        return (self.right + PRIOR_RATE * PRIOR_WEIGHT) / (self.tried + PRIOR_WEIGHT)

    def add(self, right: int, tried: int) -> None:
        self.right, self.tried = KEPT * self.right + right, KEPT * self.tried + tried


@dataclass
class DraftStatistics:
    """Counts of all steps."""

    steps: int = 0  # of each reply
    tokens: int = 0  # that these steps gave
    drafted: int = 0
    right: int = 0
    seconds: float = 0.0
    plain_seconds: float = 0.0  # that the same tokens would have taken without drafts

    @property
    def share_right(self) -> float:
        """Of the drafted tokens."""
        return self.right / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_step(self) -> float:
        return self.tokens / self.steps if self.steps else 0.0

    @property
    def speedup(self) -> float:
        return self.plain_seconds / self.seconds if self.seconds else 1.0

    def __str__(self) -> str:
        if not self.drafted:
            return "no drafted tokens"
        return (
            f"{self.share_right:.0%} of {self.drafted:,} drafted tokens right, {self.tokens_per_step:.2f} tokens/step, "
            f"{self.speedup:.2f} x as fast as without drafts"
        )


@dataclass
class PlainSteps:
    """The time of steps without drafts, with which those with drafts are compared."""

    seconds: float = 0.0
    count: int = 0
    drafting_steps: int = 0  # since the last one

    @property
    def is_due(self) -> bool:
        return self.count < MEASURED_FIRST or self.drafting_steps >= MEASURED_AGAIN

    def add(self, seconds: float) -> None:
        self.count += 1
        self.drafting_steps = 0
        self.seconds += (seconds - self.seconds) / min(self.count, 8)


class Speculator:
    """Decides how many tokens are drafted, and learns from what became of them."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        self.statistics = DraftStatistics()
        self.rates: dict[int, Rate] = defaultdict(Rate)
        self.token_cost = TOKEN_COST
        self._plain_steps: dict[int, PlainSteps] = defaultdict(PlainSteps)  # by the number of replies
        self._kinds: list[int | None] = []
        self._has_failed = False
        self._idle_steps = 0  # in which nothing was drafted, though something could have been
        self._patience = TRIED_AGAIN  # such steps until the next try: twice as many after one that was wrong
        self._is_try = False
        self._measured = 0  # drafting steps that were timed

    def draft(self, replies: Seq[Reply]) -> list[list[int]]:
        """Drafts for some replies, empty where they would cost more than they save."""
        kinds = zip(replies, self.drafter.kinds(replies), strict=True)
        self._kinds = [kind if reply.matcher is None else None for reply, kind in kinds]  # a grammar checks one token
        counts = self._plan(replies)
        if any(counts) and not self._has_failed:
            try:
                return self.drafter.propose(replies, counts)
            except Exception as error:  # out of memory, for one; the replies need no drafts
                self._has_failed = True
                logging.getLogger("bareloop").warning("no more tokens are drafted, as that failed: %r", error)
        return [[] for _ in replies]

    def _plan(self, replies: Seq[Reply]) -> list[int]:
        """Numbers of tokens to draft: one more as long as it adds to the tokens per second."""
        counts = [0] * len(replies)
        if self._plain_steps[len(replies)].is_due:
            return counts
        rates = [0.0 if kind is None else self.rates[kind].value for kind in self._kinds]
        limits = [reply.remaining - 1 for reply in replies]  # the last token needs no check
        tokens, steps = float(len(replies)), 1.0
        while sum(counts) + len(replies) < kernels.MAX_ROWS:
            chances = [
                rate ** (count + 1) if count < limit else 0.0
                for rate, count, limit in zip(rates, counts, limits, strict=True)
            ]
            best = max(chances)
            if best * steps <= self.token_cost * tokens:
                break
            counts[chances.index(best)] += 1
            tokens, steps = tokens + best, steps + self.token_cost
        if any(counts):
            self._idle_steps, self._patience = 0, TRIED_AGAIN
            return counts
        possible = [rate if limit > 0 else 0.0 for rate, limit in zip(rates, limits, strict=True)]
        self._idle_steps += any(possible)
        if self._idle_steps >= self._patience and len(replies) < kernels.MAX_ROWS:
            self._idle_steps, self._is_try = 0, True
            counts[possible.index(max(possible))] = 1
        return counts

    def observe(self, drafts: Seq[Seq[int]], gained: Seq[int], seconds: float) -> None:
        """Learn from a step of so many seconds, in which each reply gained so many tokens."""
        rows, drafted = len(drafts), sum(map(len, drafts))
        for kind, draft, tokens in zip(self._kinds, drafts, gained, strict=True):
            if draft:
                self.rates[kind or 0].add(max(tokens - 1, 0), min(tokens, len(draft)))
        if self._is_try:
            self._is_try = False
            pays = sum(gained) > rows and self.token_cost * rows < 1
            self._patience = 1 if pays else min(2 * max(self._patience, TRIED_AGAIN), MAX_PATIENCE)
        plain = self._plain_steps[rows]
        if not drafted:
            plain.add(seconds)
        else:
            plain.drafting_steps += 1
            measured = (seconds / plain.seconds - 1) / drafted if plain.count else TOKEN_COST
            self._measured += 1
            self.token_cost += (min(max(measured, 0.01), 10.0) - self.token_cost) / min(self._measured + 4, 16)
        counts = self.statistics
        counts.steps += rows
        counts.tokens += sum(gained)
        counts.drafted += drafted
        counts.right += sum(max(tokens - 1, 0) for tokens in gained)  # a reply that fails gains none
        counts.seconds += seconds
        counts.plain_seconds += plain.seconds * sum(gained) / rows


class PromptLookup:
    """Drafts what followed the last tokens where they occurred before: names, quotations, code (Saxena 2023)."""

    def __init__(self) -> None:
        self._texts: dict[Reply, _IndexedText] = {}
        self._follows: list[int] = []

    def kinds(self, replies: Seq[Reply]) -> list[int | None]:
        matches = [self._texts.setdefault(reply, _IndexedText()).match(reply) for reply in replies]
        self._follows = [follows for follows, _ in matches]
        return [length.bit_length() if length else None for _, length in matches]

    def propose(self, replies: Seq[Reply], counts: Seq[int]) -> list[list[int]]:
        drafts = []
        for reply, follows, count in zip(replies, self._follows, counts, strict=True):
            ids = self._texts[reply].ids
            draft = ids[follows : follows + count]
            draft += [draft[i % len(draft)] for i in range(count - len(draft))]  # what repeats goes on to repeat
            drafts.append([*takewhile(lambda token: not is_image_id(token), draft)])
        return drafts

    def forget(self, reply: Reply) -> None:
        self._texts.pop(reply, None)


class _IndexedText:
    """The tokens of a prompt and its reply, and where each pair of them ended."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ends: dict[tuple[int, int], list[int]] = defaultdict(list)

    def match(self, reply: Reply) -> tuple[int, int]:
        """The index after the longest earlier match of the last tokens, and its length; 0 if there is none."""
        ids = self.ids
        if not ids:
            ids += reply.sequence.ids[: reply.start]
            self._index(1, len(ids))
        known = len(ids)
        ids += reply.token_ids[known - reply.start :]
        self._index(max(known, 1), len(ids) - 1)  # all but the last pair, which is looked up
        best = place = 0
        for end in reversed(self.ends[ids[-2], ids[-1]][-CANDIDATES:]):
            length = MIN_MATCH
            while length < min(MAX_MATCH, end + 1) and ids[end - length] == ids[-1 - length]:
                length += 1
            if length > best:
                best, place = length, end + 1
        self._index(max(len(ids) - 1, 1), len(ids))
        return place, best

    def _index(self, start: int, stop: int) -> None:
        for end in range(start, stop):
            self.ends[self.ids[end - 1], self.ids[end]].append(end)


class DraftModel:
    """Drafts with a smaller model of the same vocabulary, which draws as the large one does."""

    def __init__(self, model: Model, max_length: int, vocab_size: int) -> None:
        """`vocab_size`: of the large model, which may have other padding at the end of its vocabulary."""
        self.model = model
        self.max_length = max_length
        self.vocab_size = min(vocab_size, model.config.vocab_size)
        self.state = model.new_state()
        self._sequences: dict[Reply, Sequence] = {}

    def kinds(self, replies: Seq[Reply]) -> list[int | None]:
        return [0 if len(reply.sequence.ids) + kernels.MAX_ROWS < self.max_length else None for reply in replies]

    def propose(self, replies: Seq[Reply], counts: Seq[int]) -> list[list[int]]:
        texts = [self._known([*reply.sequence.ids, reply.token_ids[-1]]) for reply in replies]
        starts = list(map(len, texts))
        active = [index for index, count in enumerate(counts) if count]
        while active:
            for reply in (replies[index] for index in active):
                if reply not in self._sequences:
                    self._sequences[reply] = Sequence(self.model, self.state, self.max_length)
            rows = [self._sequences[replies[index]] for index in active]
            _, hidden = prefill(rows, [texts[index] for index in active], [1] * len(active))
            with torch.inference_mode():
                logits = self.model.logits(torch.cat(hidden))[:, : self.vocab_size]
                tokens = download(choose(logits, [self._context(replies[index], texts[index]) for index in active]))
            for index, token in zip(active, tokens, strict=True):
                texts[index] += [token] if token != INVALID else []
            active = [
                index
                for index, token in zip(active, tokens, strict=True)
                if token != INVALID and len(texts[index]) < starts[index] + counts[index]
            ]
        return [text[start:] for text, start in zip(texts, starts, strict=True)]

    def _known(self, ids: list[int]) -> list[int]:
        """These tokens, with 0 for those that the smaller vocabulary lacks, and for the vectors of images."""
        return ids if max(ids) < self.vocab_size else [token if token < self.vocab_size else 0 for token in ids]

    def _context(self, reply: Reply, text: list[int]) -> Context:
        bias = {token: value for token, value in (reply.params.logit_bias or {}).items() if token < self.vocab_size}
        return Context(replace(reply.params, logit_bias=bias or None), text, reply.start, reply.seed)

    def forget(self, reply: Reply) -> None:
        if reply in self._sequences:
            self._sequences.pop(reply).close()
