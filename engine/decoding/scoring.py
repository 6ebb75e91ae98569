"""Log-likelihoods of continuations, with what questions share computed once.

    prefix    what the questions of a group begin with: few-shot examples. Computed once and forked.
    stem      what the requests of one question share beyond it: its letters " A" … " D" all read the scores at its end.
    branch    what only some continuations add: the tokens of a longer answer, but the last.

A plan depends on the questions and the limits alone, and a batch is always computed in the same shapes: so a
batch that is scored again, or after others, or alone, gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.decoding.loop import Sequence as TokenSequence
from engine.decoding.loop import check_ids, common_prefix, prefill
from engine.runtime.errors import BareloopError

# Tokens of one forward: enough to keep the device busy, few enough that little is lost with an unfinished batch.
BATCH_TOKENS = {"cpu": 2_048, "cuda": 16_384, "mps": 2_048}
# A group costs a pass over the weights and a last batch that is not full: as much as this many tokens.
GROUP_COST = 128
ROWS = 256  # rows of logits [vocab] that are in memory at once

Request = tuple[Sequence[int], Sequence[int]]  # the ids of a context and of its continuation
Question = Sequence[Request]  # requests with one context, scored together


@dataclass(frozen=True)
class Score:
    """One continuation: its log-likelihood in nats, and whether greedy decoding would have written it."""

    loglikelihood: float
    is_greedy: bool


@dataclass(frozen=True)
class Stem:
    """What some requests have in common, and what each adds: `branches` holds their places under the added ids."""

    ids: list[int]
    keep: int  # tokens at its end whose next-token scores are read
    branches: dict[tuple[int, ...], list[int]]


@dataclass(frozen=True)
class Prompt:
    """One question, ready to be fed: a stem, or several where its requests are too long and are cut differently."""

    place: int  # in the list that was planned
    continuations: list[Sequence[int]]
    stems: list[Stem]
    truncated: bool

    @property
    def tokens(self) -> int:
        """Tokens that are fed for it when it shares nothing with others."""
        return sum(len(stem.ids) + sum(map(len, stem.branches)) for stem in self.stems)

    @property
    def shareable(self) -> list[int]:
        """What may be computed with others: all that it begins with, up to the first token whose scores are read."""
        first, *others = (stem.ids[: -stem.keep] for stem in self.stems)
        return first[: min((common_prefix(first, other) for other in others), default=len(first))]


@dataclass(frozen=True)
class Batch:
    """Questions that are computed together, on top of a prefix that all of them begin with."""

    prefix: list[int]
    prompts: list[Prompt]

    @property
    def tokens(self) -> int:
        """Tokens that are fed, the prefix apart."""
        return sum(prompt.tokens - len(self.prefix) * len(prompt.stems) for prompt in self.prompts)


class Scorer:
    """Plans and scores; it keeps the state of the last batch's prefix, and counts the tokens that it feeds."""

    def __init__(self, new_sequence: Callable[[], TokenSequence], batch_tokens: int) -> None:
        if batch_tokens < 1:
            raise BareloopError(f"batch_tokens is {batch_tokens}; use 1 or more")
        self.new_sequence = new_sequence
        self.batch_tokens = batch_tokens
        self.prefix = new_sequence()  # at the end of the last batch's prefix
        self.fed = 0

    def plan(self, questions: Sequence[Question]) -> list[Batch]:
        """Check the questions, and form batches that depend on nothing else but the limits."""
        for context, continuation in (request for question in questions for request in question):
            if not context or not 1 <= len(continuation) <= self.prefix.max_length:
                raise BareloopError(
                    f"cannot score {len(continuation)} tokens after {len(context)}: a continuation has 1 to "
                    f"{self.prefix.max_length:,} tokens, its context at least 1"
                )
            check_ids(continuation, self.prefix.model.config.vocab_size)
        return plan(questions, self.prefix.max_length, self.batch_tokens)

    def score(self, batch: Batch) -> list[list[Score]]:
        """The scores of each prompt's continuations: a step for the stems, one more if some have branches."""
        prefix = self._prefixed(batch)
        stems = [stem for prompt in batch.prompts for stem in prompt.stems]
        rows = prefix.fork(len(stems))
        keep = [stem.keep for stem in stems]
        _, ends = prefill(rows, [stem.ids for stem in stems], keep, self.batch_tokens)
        forks: list[TokenSequence] = []
        texts: list[list[int]] = []
        for stem, row in zip(stems, rows, strict=True):
            added = [branch for branch in stem.branches if branch]
            forks += row.fork(len(added))
            texts += [[*stem.ids, *branch] for branch in added]
        lengths = [len(branch) for stem in stems for branch in stem.branches if branch]
        branches = prefill(forks, texts, lengths, self.batch_tokens)[1] if forks else []
        for sequence in (*rows, *forks):
            sequence.close()
        self.fed += batch.tokens

        scores = iter(self._scores(torch.cat([*ends, *branches]), batch))
        return [[next(scores) for _ in prompt.continuations] for prompt in batch.prompts]

    def _prefixed(self, batch: Batch) -> TokenSequence:
        """A sequence that stands at the end of the batch's prefix, computed from its beginning or still there."""
        if self.prefix.ids != batch.prefix:
            self.prefix.close()
            self.prefix = self.new_sequence()
            if batch.prefix:
                prefill([self.prefix], [batch.prefix], [1], self.batch_tokens)
            self.fed += len(batch.prefix)
        return self.prefix

    @torch.inference_mode()
    def _scores(self, hidden: Tensor, batch: Batch) -> list[Score]:
        """The scores of all continuations, from the states [M, D] at the ends of all stems, then of all branches.

        Log-softmax and sum are taken in the model's dtype, as lm-evaluation-harness does.
        """
        continuations = [continuation for prompt in batch.prompts for continuation in prompt.continuations]
        row = torch.tensor([place for places in _predictors(batch) for place in places])
        target = torch.tensor([token for continuation in continuations for token in continuation])
        chosen = torch.empty(len(row), dtype=hidden.dtype)
        greedy = torch.empty(len(row), dtype=torch.bool)
        for first in range(0, len(hidden), ROWS):
            logits = self.prefix.model.logits(hidden[first : first + ROWS])
            here = ((row >= first) & (row < first + ROWS)).nonzero()[:, 0]
            rows, tokens = (index[here].to(logits.device) for index in (row - first, target))
            logprobs = logits.log_softmax(-1)
            own = logprobs[rows, tokens]
            likely = own == logprobs.amax(-1)[rows]  # a look for the first of equals costs ten times as much
            likely[likely.clone()] = logprobs[rows[likely]].argmax(-1) == tokens[likely]
            chosen[here], greedy[here] = own.cpu(), likely.cpu()
        lengths = [len(continuation) for continuation in continuations]
        parts = zip(torch.split(chosen, lengths), torch.split(greedy, lengths), strict=True)
        return [Score(float(own.sum()), bool(hits.all())) for own, hits in parts]


def _predictors(batch: Batch) -> list[list[int]]:
    """For each continuation, the rows that predict its tokens: the last of its stem's, then those of its branch."""
    rows: list[list[int]] = []
    stem_end = 0
    branch_end = sum(stem.keep for prompt in batch.prompts for stem in prompt.stems)
    for prompt in batch.prompts:
        own: dict[int, list[int]] = {}
        for stem in prompt.stems:
            stem_end += stem.keep
            for branch, places in stem.branches.items():
                branch_end += len(branch)
                for place in places:
                    of_stem = len(prompt.continuations[place]) - len(branch)
                    own[place] = [*range(stem_end - of_stem, stem_end), *range(branch_end - len(branch), branch_end)]
        rows += [own[place] for place in range(len(prompt.continuations))]
    return rows


def plan(questions: Sequence[Question], max_length: int, batch_tokens: int) -> list[Batch]:
    """Questions -> batches of up to `batch_tokens` tokens each (or of one question), by the prefix that they share."""
    prompts = [_prompt(place, question, max_length) for place, question in enumerate(questions)]
    batches: list[Batch] = []
    for depth, members in groups([prompt.shareable for prompt in prompts], GROUP_COST):
        whole = Batch(prompts[members[0]].shareable[:depth], [prompts[member] for member in members])
        even = whole.tokens / -(-whole.tokens // batch_tokens)  # no small one at the end
        held = batch_tokens
        for prompt in whole.prompts:
            alone = Batch(whole.prefix, [prompt])
            if held + alone.tokens > batch_tokens or held >= even:
                batches.append(alone)
                held = alone.tokens
            else:
                batches[-1].prompts.append(prompt)
                held += alone.tokens
    return batches


def _prompt(place: int, question: Question, max_length: int) -> Prompt:
    """Requests -> stems and branches.

    Of a pair that is too long the last `max_length + 1` tokens are kept, the last of them only predicted.
    """
    cuts = [max(0, len(context) + len(continuation) - max_length - 1) for context, continuation in question]
    stems = []
    for cut in dict.fromkeys(cuts):
        inputs = {i: [*question[i][0], *question[i][1]][cut:-1] for i, own in enumerate(cuts) if own == cut}
        first, *others = inputs.values()
        ids = first[: min((common_prefix(first, other) for other in others), default=len(first))]
        branches: dict[tuple[int, ...], list[int]] = {}
        for i, fed in inputs.items():
            branches.setdefault(tuple(fed[len(ids) :]), []).append(i)
        keep = max(len(question[i][1]) - len(branch) for branch, places in branches.items() for i in places)
        stems.append(Stem(ids, keep, branches))
    return Prompt(place, [continuation for _, continuation in question], stems, truncated=any(cuts))


def groups(texts: Sequence[Sequence[int]], cost: int) -> list[tuple[int, list[int]]]:
    """(length of the shared prefix, members): the grouping in which sharing saves most tokens; a group costs some.

    A walk over the tree of common prefixes of the sorted texts, leaves first. A node's texts are one group that
    shares its whole depth, or fall apart into what is best for each of its children. What is in no group comes
    last, as a group that shares nothing.
    """
    order = sorted(range(len(texts)), key=lambda i: list(texts[i]))
    nodes: list[tuple[int, _Sharing]] = []  # from the root to where the walk is: depth, and what was left behind there
    here = _Sharing()
    for place, text in enumerate(order):
        following = order[place + 1 : place + 2]
        depth = common_prefix(texts[text], texts[following[0]]) if following else -1
        here = _Sharing([text], 0, [], [text])
        while nodes and nodes[-1][0] > depth:
            at, left = nodes.pop()
            here = left.joined(here).settled(at, cost)
        if nodes and nodes[-1][0] == depth:
            here = nodes.pop()[1].joined(here)
        nodes.append((depth, here))
    sharing = sorted((min(members), depth, sorted(members)) for depth, members in here.groups)
    loose = [(0, sorted(here.loose))] if here.loose else []
    return [(depth, members) for _, depth, members in sharing] + loose


@dataclass(frozen=True)
class _Sharing:
    """Some texts, and how they are best grouped: the tokens that it saves, the groups, and what is in none."""

    members: list[int] = field(default_factory=list)
    saved: int = 0
    groups: list[tuple[int, list[int]]] = field(default_factory=list)
    loose: list[int] = field(default_factory=list)

    def joined(self, other: _Sharing) -> _Sharing:
        """Both, each grouped as it is."""
        return _Sharing(
            self.members + other.members,
            self.saved + other.saved,
            self.groups + other.groups,
            self.loose + other.loose,
        )

    def settled(self, depth: int, cost: int) -> _Sharing:
        """As one group that shares `depth` tokens, if that saves more."""
        saved = (len(self.members) - 1) * depth - cost
        return _Sharing(self.members, saved, [(depth, self.members)], []) if saved > self.saved else self
