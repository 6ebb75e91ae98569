"""Log-likelihoods of continuations. Shared parts of the requests are computed once.

    prefix    the common beginning of the questions of a group: few-shot examples. Computed once and forked.
    stem      the common part of one question's requests after the prefix: " A" … " D" all use the logits at its end.
    branch    the tokens of a longer continuation, without the last one.

A plan depends only on the questions and the limits, and a batch is always computed in the same shapes: so a batch that
is scored again, after others, or alone, gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine import kernels
from engine.decoding.sequence import Sequence as TokenSequence
from engine.decoding.sequence import check_ids, common_prefix, prefill
from engine.runtime.errors import BareloopError

# Tokens per forward pass: enough to keep the device busy, few enough that little is lost with an unfinished batch.
BATCH_TOKENS = {"cpu": 2_048, "cuda": 16_384, "mps": 2_048}
# A group costs a pass over the weights and a partly filled last batch: as much as this many tokens.
GROUP_COST = 128
LOGITS_ROWS = 256  # rows of logits [vocab] in memory at once

Request = tuple[Sequence[int], Sequence[int]]  # ids of a context and of its continuation
Question = Sequence[Request]  # requests with one context, scored together


@dataclass(frozen=True)
class Score:
    """One continuation: its log-likelihood in nats, and whether greedy decoding would generate it."""

    loglikelihood: float
    is_greedy: bool


@dataclass(frozen=True)
class Stem:
    """The common part of some requests. `branches`: the ids that follow it -> indices of the continuations."""

    ids: list[int]
    outputs: int  # number of trailing positions whose logits are needed
    branches: dict[tuple[int, ...], list[int]]


@dataclass(frozen=True)
class Prompt:
    """One question, ready to be fed: one stem, or several if its requests are too long and are cut differently."""

    index: int  # in the list of questions
    continuations: list[Sequence[int]]
    stems: list[Stem]
    truncated: bool

    @property
    def tokens(self) -> int:
        """Number of tokens to compute if it shares nothing with other questions."""
        return sum(len(stem.ids) + sum(map(len, stem.branches)) for stem in self.stems)

    @property
    def shareable(self) -> list[int]:
        """The part that may be in a shared prefix: all tokens before the first one whose logits are needed."""
        first, *others = (stem.ids[: -stem.outputs] for stem in self.stems)
        return first[: min((common_prefix(first, other) for other in others), default=len(first))]


@dataclass(frozen=True)
class Batch:
    """Questions that are computed together, after a prefix that all of them begin with."""

    prefix: list[int]
    prompts: list[Prompt]

    @property
    def tokens(self) -> int:
        """Number of tokens to compute, without the prefix."""
        return sum(prompt.tokens - len(self.prefix) * len(prompt.stems) for prompt in self.prompts)


class Scorer:
    """Plans and scores batches. It keeps the state of the last batch's prefix, and counts the computed tokens."""

    def __init__(self, new_sequence: Callable[[], TokenSequence], batch_tokens: int) -> None:
        if batch_tokens < 1:
            raise BareloopError(f"batch_tokens is {batch_tokens}; use 1 or more")
        self.new_sequence = new_sequence
        self.batch_tokens = batch_tokens
        self.prefix = new_sequence()  # the last batch's prefix
        self.computed = 0  # tokens

    def plan(self, questions: Sequence[Question]) -> list[Batch]:
        """Check the questions, and form batches, which depend only on the questions and the limits."""
        for context, continuation in (request for question in questions for request in question):
            if not context or not 1 <= len(continuation) <= self.prefix.max_length:
                raise BareloopError(
                    f"cannot score {len(continuation)} tokens after {len(context)}: a continuation has 1 to "
                    f"{self.prefix.max_length:,} tokens, its context at least 1"
                )
            check_ids(continuation, self.prefix.model.config.vocab_size)
        return plan(questions, self.prefix.max_length, self.batch_tokens)

    def score(self, batch: Batch) -> list[list[Score]]:
        """The scores of each prompt's continuations: one step for the stems, another if some have branches."""
        prefix = self._prefix_sequence(batch)
        stems = [stem for prompt in batch.prompts for stem in prompt.stems]
        rows = prefix.fork(len(stems))
        outputs = [stem.outputs for stem in stems]
        _, ends = prefill(rows, [stem.ids for stem in stems], outputs, self.batch_tokens)
        forks: list[TokenSequence] = []
        texts: list[list[int]] = []
        for stem, row in zip(stems, rows, strict=True):
            nonempty = [branch for branch in stem.branches if branch]
            forks += row.fork(len(nonempty))
            texts += [[*stem.ids, *branch] for branch in nonempty]
        lengths = [len(branch) for stem in stems for branch in stem.branches if branch]
        branches = prefill(forks, texts, lengths, self.batch_tokens)[1] if forks else []
        for sequence in (*rows, *forks):
            sequence.close()
        self.computed += batch.tokens

        scores = iter(self._scores(torch.cat([*ends, *branches]), batch))
        return [[next(scores) for _ in prompt.continuations] for prompt in batch.prompts]

    def _prefix_sequence(self, batch: Batch) -> TokenSequence:
        """A sequence with the batch's prefix: the last one if it is the same, otherwise computed from the start."""
        if self.prefix.ids != batch.prefix:
            self.prefix.close()
            self.prefix = self.new_sequence()
            if batch.prefix:
                prefill([self.prefix], [batch.prefix], [1], self.batch_tokens)
            self.computed += len(batch.prefix)
        return self.prefix

    @torch.inference_mode()
    def _scores(self, hidden: Tensor, batch: Batch) -> list[Score]:
        """The scores of all continuations, from the hidden states [M, D] of all stems' ends, then of all branches.

        Log-softmax and sum are computed in the model's dtype, as in lm-evaluation-harness. Raises `BareloopError` if a
        log-likelihood is NaN.
        """
        continuations = [continuation for prompt in batch.prompts for continuation in prompt.continuations]
        row = torch.tensor([index for indices in _predictors(batch) for index in indices])
        target = torch.tensor([token for continuation in continuations for token in continuation])
        chosen = torch.empty(len(row), dtype=hidden.dtype)
        greedy = torch.empty(len(row), dtype=torch.bool)
        for first in range(0, len(hidden), LOGITS_ROWS):
            logits = self.prefix.model.logits(hidden[first : first + LOGITS_ROWS])
            selected = ((row >= first) & (row < first + LOGITS_ROWS)).nonzero()[:, 0]
            rows, tokens = (index[selected].to(logits.device) for index in (row - first, target))
            logprobs = logits.log_softmax(-1)
            of_tokens = logprobs[rows, tokens]
            largest = of_tokens == _largest(logits, logprobs)[rows]  # argmax breaks ties, and costs ten times as much
            largest[largest.clone()] = logprobs[rows[largest]].argmax(-1) == tokens[largest]
            chosen[selected], greedy[selected] = of_tokens.cpu(), largest.cpu()
        if chosen.isnan().any():
            source = self.prefix.model.source
            raise BareloopError(f"{source}: log-likelihoods are NaN; with float16 use --dtype bfloat16 or float32")
        lengths = [len(continuation) for continuation in continuations]
        parts = zip(torch.split(chosen, lengths), torch.split(greedy, lengths), strict=True)
        return [Score(float(logprobs.sum()), bool(matches.all())) for logprobs, matches in parts]


def _largest(logits: Tensor, logprobs: Tensor) -> Tensor:
    """The largest log-probability of each row [M], which is that of its largest logit. Any number if one is NaN."""
    ops = kernels.for_rows(logits)
    return logprobs.amax(-1) if ops is None else logprobs.gather(1, ops.argmax(logits)[:, None].clamp_min(0))[:, 0]


def _predictors(batch: Batch) -> list[list[int]]:
    """For each continuation, the rows of hidden states that predict its tokens: of its stem, then of its branch."""
    rows: list[list[int]] = []
    stem_end = 0
    branch_end = sum(stem.outputs for prompt in batch.prompts for stem in prompt.stems)
    for prompt in batch.prompts:
        of_continuation: dict[int, list[int]] = {}
        for stem in prompt.stems:
            stem_end += stem.outputs
            for branch, indices in stem.branches.items():
                branch_end += len(branch)
                of_branch = range(branch_end - len(branch), branch_end)
                for index in indices:
                    count = len(prompt.continuations[index]) - len(branch)
                    of_continuation[index] = [*range(stem_end - count, stem_end), *of_branch]
        rows += [of_continuation[index] for index in range(len(prompt.continuations))]
    return rows


def plan(questions: Sequence[Question], max_length: int, batch_tokens: int) -> list[Batch]:
    """Questions -> batches of up to `batch_tokens` tokens (or of one question), grouped by shared prefix."""
    prompts = [_prompt(index, question, max_length) for index, question in enumerate(questions)]
    batches: list[Batch] = []
    for depth, members in groups([prompt.shareable for prompt in prompts], GROUP_COST):
        whole = Batch(prompts[members[0]].shareable[:depth], [prompts[member] for member in members])
        even = whole.tokens / -(-whole.tokens // batch_tokens)  # equal sizes, without a small batch at the end
        tokens = batch_tokens
        for prompt in whole.prompts:
            alone = Batch(whole.prefix, [prompt])
            if tokens + alone.tokens > batch_tokens or tokens >= even:
                batches.append(alone)
                tokens = alone.tokens
            else:
                batches[-1].prompts.append(prompt)
                tokens += alone.tokens
    return batches


def _prompt(index: int, question: Question, max_length: int) -> Prompt:
    """Requests -> stems and branches.

    A pair that is too long keeps its last `max_length + 1` tokens, of which the last is only predicted.
    """
    cuts = [max(0, len(context) + len(continuation) - max_length - 1) for context, continuation in question]
    stems = []
    for cut in dict.fromkeys(cuts):
        inputs = {i: [*question[i][0], *question[i][1]][cut:-1] for i, own_cut in enumerate(cuts) if own_cut == cut}
        first, *others = inputs.values()
        ids = first[: min((common_prefix(first, other) for other in others), default=len(first))]
        branches: dict[tuple[int, ...], list[int]] = {}
        for i, tokens in inputs.items():
            branches.setdefault(tuple(tokens[len(ids) :]), []).append(i)
        outputs = max(len(question[i][1]) - len(branch) for branch, indices in branches.items() for i in indices)
        stems.append(Stem(ids, outputs, branches))
    return Prompt(index, [continuation for _, continuation in question], stems, truncated=any(cuts))


def groups(texts: Sequence[Sequence[int]], cost: int) -> list[tuple[int, list[int]]]:
    """Group texts so that sharing prefixes saves the most tokens: -> (length of the shared prefix, members).

    A group costs `cost` tokens. The tree of common prefixes of the sorted texts is walked leaves first: the texts below
    a node become one group that shares its whole depth, or keep the best grouping of its children. Texts in no group
    come last, as a group with prefix length 0.
    """
    order = sorted(range(len(texts)), key=lambda i: list(texts[i]))
    nodes: list[tuple[int, _Grouping]] = []  # path from the root: depth, and the grouping of the texts so far
    current = _Grouping()
    for position, text in enumerate(order):
        following = order[position + 1 : position + 2]
        depth = common_prefix(texts[text], texts[following[0]]) if following else -1
        current = _Grouping([text], 0, [], [text])
        while nodes and nodes[-1][0] > depth:
            node_depth, left = nodes.pop()
            current = left.joined(current).merged_if_better(node_depth, cost)
        if nodes and nodes[-1][0] == depth:
            current = nodes.pop()[1].joined(current)
        nodes.append((depth, current))
    shared = sorted((min(members), depth, sorted(members)) for depth, members in current.groups)
    ungrouped = [(0, sorted(current.ungrouped))] if current.ungrouped else []
    return [(depth, members) for _, depth, members in shared] + ungrouped


@dataclass(frozen=True)
class _Grouping:
    """Some texts and their best grouping: saved tokens, the groups, and the texts in none."""

    members: list[int] = field(default_factory=list)
    saved: int = 0
    groups: list[tuple[int, list[int]]] = field(default_factory=list)
    ungrouped: list[int] = field(default_factory=list)

    def joined(self, other: _Grouping) -> _Grouping:
        """Both together, with the groups unchanged."""
        return _Grouping(
            self.members + other.members,
            self.saved + other.saved,
            self.groups + other.groups,
            self.ungrouped + other.ungrouped,
        )

    def merged_if_better(self, depth: int, cost: int) -> _Grouping:
        """One group that shares `depth` tokens, if that saves more."""
        saved = (len(self.members) - 1) * depth - cost
        return _Grouping(self.members, saved, [(depth, self.members)], []) if saved > self.saved else self
