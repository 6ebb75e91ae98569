"""Log-likelihoods of continuations, with what prompts share computed once.

    prefix    what the prompts of a group begin with: few-shot examples. Computed once and forked.
    stem      one context after it: a question. Its letters " A" … " D" all read the scores at its end.
    branch    what only some of its continuations add: the tokens of a longer answer, but the last.

A plan depends on the requests and the limits alone, and a batch is always computed in the same shapes: so a
batch that is scored again, or after others, or alone, gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from engine.errors import BareloopError
from engine.generate import Sequence as TokenSequence
from engine.generate import check_ids, common_prefix, prefill

# A group costs a pass over the weights and a last batch that is not full: as much as this many tokens.
GROUP_COST = 128
# Tokens of one forward: enough to keep the device busy, few enough that little is lost with an unfinished batch.
BATCH_TOKENS = {"cpu": 1_024, "cuda": 16_384, "mps": 2_048}
ROWS = 256  # rows of logits [vocab] that are in memory at once

Request = tuple[Sequence[int], Sequence[int]]  # the ids of a context and of its continuation


@dataclass(frozen=True)
class Score:
    """One continuation: its log-likelihood in nats, and whether greedy decoding would have written it."""

    loglikelihood: float
    is_greedy: bool


@dataclass(frozen=True)
class Stem:
    """What some requests have in common, and what each adds: `branches` holds the requests under the added ids."""

    ids: list[int]
    keep: int  # tokens at its end whose next-token scores are read
    branches: dict[tuple[int, ...], list[int]]
    truncated: bool

    @property
    def tokens(self) -> int:
        """Tokens that are fed for it when nothing is shared with other stems."""
        return len(self.ids) + sum(map(len, self.branches))


@dataclass(frozen=True)
class Batch:
    """Stems that are computed together, on top of a prefix that all of them begin with."""

    prefix: list[int]
    stems: list[Stem]
    opens_group: bool  # the prefix is first needed here

    @property
    def requests(self) -> list[int]:
        """The requests' places in the list that was planned, in the order of their scores."""
        return [request for stem in self.stems for listed in stem.branches.values() for request in listed]

    @property
    def tokens(self) -> int:
        """Tokens that are fed, the prefix apart."""
        return sum(stem.tokens - len(self.prefix) for stem in self.stems)


class Scorer:
    """Planned requests; it holds the state of the prefix that it is at."""

    def __init__(
        self, requests: Sequence[Request], new_sequence: Callable[[], TokenSequence], batch_tokens: int
    ) -> None:
        """Check the requests and plan their batches."""
        if batch_tokens < 1:
            raise BareloopError(f"batch_tokens is {batch_tokens}; use 1 or more")
        self.requests = requests
        self.new_sequence = new_sequence
        self.batch_tokens = batch_tokens
        sequence = new_sequence()
        for context, continuation in requests:
            if not context or not 1 <= len(continuation) <= sequence.max_length:
                raise BareloopError(
                    f"cannot score {len(continuation)} tokens after {len(context)}: a continuation has 1 to "
                    f"{sequence.max_length:,} tokens, its context at least 1"
                )
            check_ids(continuation, sequence.model.config.vocab_size)
        self.batches = plan(requests, sequence.max_length, batch_tokens)
        self.prefix = sequence  # at the end of the last batch's prefix

    def score(self, batch: Batch) -> list[Score]:
        """The scores of `batch.requests`: a step for the stems, one more if some have branches."""
        stems = self._prefixed(batch).fork(len(batch.stems))
        keep = [stem.keep for stem in batch.stems]
        _, hidden = prefill(stems, [stem.ids for stem in batch.stems], keep, self.batch_tokens)
        owners: list[TokenSequence] = []
        texts: list[list[int]] = []
        for stem, sequence in zip(batch.stems, stems, strict=True):
            added = [branch for branch in stem.branches if branch]
            owners += sequence.fork(len(added))
            texts += [[*stem.ids, *branch] for branch in added]
        lengths = [len(branch) for stem in batch.stems for branch in stem.branches if branch]
        branches = prefill(owners, texts, lengths, self.batch_tokens)[1] if owners else []
        for sequence in (*stems, *owners):
            sequence.close()

        # A continuation's tokens are predicted by the last states of its stem, then by those of its branch.
        places: list[int] = []
        stem_end, branch_end = 0, sum(keep)
        for stem in batch.stems:
            stem_end += stem.keep
            for branch, listed in stem.branches.items():
                branch_end += len(branch)
                for request in listed:
                    of_stem = len(self.requests[request][1]) - len(branch)
                    places += range(stem_end - of_stem, stem_end)
                    places += range(branch_end - len(branch), branch_end)
        continuations = [self.requests[request][1] for request in batch.requests]
        return self._scores(torch.cat([*hidden, *branches]), places, continuations)

    def _prefixed(self, batch: Batch) -> TokenSequence:
        """A sequence that stands at the end of the batch's prefix, computed from its beginning or still there."""
        if self.prefix.ids != batch.prefix:
            self.prefix.close()
            self.prefix = self.new_sequence()
            if batch.prefix:
                prefill([self.prefix], [batch.prefix], [1], self.batch_tokens)
        return self.prefix

    @torch.inference_mode()
    def _scores(self, hidden: Tensor, places: list[int], continuations: list[Sequence[int]]) -> list[Score]:
        """Scores of continuations whose tokens, end to end, are predicted by the states at `places` in hidden [M, D].

        Log-softmax and sum are taken in the model's dtype, as lm-evaluation-harness does.
        """
        place = torch.tensor(places)
        target = torch.tensor([token for continuation in continuations for token in continuation])
        chosen = torch.empty(len(places), dtype=hidden.dtype)
        greedy = torch.empty(len(places), dtype=torch.bool)
        for first in range(0, len(hidden), ROWS):
            logits = self.prefix.model.logits(hidden[first : first + ROWS])
            here = ((place >= first) & (place < first + ROWS)).nonzero()[:, 0]
            rows, tokens = (index[here].to(logits.device) for index in (place - first, target))
            chosen[here] = logits.log_softmax(-1)[rows, tokens].cpu()
            greedy[here] = (logits.argmax(-1)[rows] == tokens).cpu()
        lengths = [len(continuation) for continuation in continuations]
        parts = zip(torch.split(chosen, lengths), torch.split(greedy, lengths), strict=True)
        return [Score(float(logprobs.sum()), bool(hits.all())) for logprobs, hits in parts]


def plan(requests: Sequence[Request], max_length: int, batch_tokens: int) -> list[Batch]:
    """Requests -> batches of up to `batch_tokens` tokens each (or of one stem), grouped by the prefix they share."""
    stems = _stems(requests, max_length)
    batches: list[Batch] = []
    for depth, members in _groups([stem.ids[: -stem.keep] for stem in stems]):
        prefix = stems[members[0]].ids[:depth]
        batch = Batch(prefix, [], opens_group=True)
        for member in members:
            stem = stems[member]
            if batch.stems and batch.tokens + stem.tokens - depth > batch_tokens:
                batches.append(batch)
                batch = Batch(prefix, [], opens_group=False)
            batch.stems.append(stem)
        batches.append(batch)
    return batches


def _stems(requests: Sequence[Request], max_length: int) -> list[Stem]:
    """Neighbours with one context are one stem, and what their continuations begin with belongs to it.

    Of a pair that is too long the last `max_length + 1` tokens are kept, the last of them only predicted.
    """
    cuts = [max(0, len(context) + len(continuation) - max_length - 1) for context, continuation in requests]
    stems: list[Stem] = []
    for _, group in groupby(range(len(requests)), key=lambda i: (cuts[i], list(requests[i][0]))):
        members = list(group)
        cut = cuts[members[0]]
        inputs = [[*requests[i][0], *requests[i][1]][cut:-1] for i in members]
        ids = inputs[0][: min(common_prefix(inputs[0], other) for other in inputs)]
        branches: dict[tuple[int, ...], list[int]] = {}
        for i, fed in zip(members, inputs, strict=True):
            branches.setdefault(tuple(fed[len(ids) :]), []).append(i)
        keep = max(len(requests[i][1]) - len(branch) for branch, listed in branches.items() for i in listed)
        stems.append(Stem(ids, keep, branches, truncated=cut > 0))
    return stems


def _groups(texts: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    """(length of the shared prefix, members): the grouping in which sharing saves most tokens.

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
            here = left.joined(here).settled(at)
        if nodes and nodes[-1][0] == depth:
            here = nodes.pop()[1].joined(here)
        nodes.append((depth, here))
    groups = sorted((min(members), depth, sorted(members)) for depth, members in here.groups)
    loose = [(0, sorted(here.loose))] if here.loose else []
    return [(depth, members) for _, depth, members in groups] + loose


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

    def settled(self, depth: int) -> _Sharing:
        """As one group that shares `depth` tokens, if that saves more."""
        saved = (len(self.members) - 1) * depth - GROUP_COST
        return _Sharing(self.members, saved, [(depth, self.members)], []) if saved > self.saved else self
