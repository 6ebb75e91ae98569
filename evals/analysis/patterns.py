"""Patterns in the mistakes of several runs, as pure functions of a group. No torch; numpy is imported when called.

Runs are given by their index in `group.runs`. Undefined values, such as the overlap of two runs without a mistake, are
NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from evals.analysis.calibration import log_correct_probability, wrong_choice_preferences
from evals.analysis.statistics import cochran_q_test, difference_interval, mcnemar_test, wilson_interval

if TYPE_CHECKING:
    from numpy import ndarray
    from numpy.random import Generator

    from evals.runs.collection import Group
    from evals.runs.run_file import Key

    Array = ndarray[Any, Any]

BLOCK = 2_000  # permutations drawn at a time, to bound memory


@dataclass(frozen=True)
class Rate:
    """Correct answers of a run out of `n`, and the 95 % interval of its accuracy (Wilson's)."""

    right: int
    n: int
    low: float
    high: float

    @property
    def mean(self) -> float:
        return self.right / self.n


@dataclass(frozen=True)
class SubjectRow:
    """Each run's accuracy in a subject, and the p-value of all being equal (Cochran's Q; McNemar's test for two)."""

    subject: str
    rates: list[Rate]
    p: float

    @property
    def spread(self) -> float:
        """Difference between the best and the worst accuracy."""
        means = [rate.mean for rate in self.rates]
        return max(means) - min(means)


@dataclass(frozen=True)
class PairedDifference:
    """Two runs on the same questions: questions that only one answered correctly, and the difference in accuracy."""

    first: int
    second: int
    only_first: int
    only_second: int
    difference: float  # accuracy of the first minus that of the second
    low: float  # 95 % interval, Newcombe's
    high: float
    p: float  # McNemar's test


@dataclass(frozen=True)
class CommonMisses:
    """Numbers of questions that 0, 1, … all runs miss, compared with independent mistakes.

    `p` is the probability that independent mistakes are spread over the questions at least as unevenly, or as evenly;
    `p_within` is the same if each subject keeps its number of mistakes. `excess` gives the direction: by how much the
    variance of the number of misses per question exceeds that of independent mistakes. If positive, the runs tend to
    miss the same questions; if negative, different ones.
    """

    observed: list[int]  # [k]: questions that exactly k runs miss
    expected: list[float]  # with independent mistakes
    low: list[float]  # 2.5 % quantile of the permutations
    high: list[float]  # 97.5 % quantile
    p: float
    p_within: float
    excess: float = 0.0
    excess_within: float = 0.0


@dataclass(frozen=True)
class Overlap:
    """Overlap of the mistakes of two runs."""

    first: int
    second: int
    both_wrong: int
    jaccard: float  # fraction of the questions missed by either that both miss
    expected_jaccard: float  # from the expected counts of independent mistakes
    kappa: float  # Cohen's (1960) for right or wrong: 1 is full agreement, 0 is chance
    same_choice: float | None  # fraction of the questions missed by both with the same wrong choice
    expected_same: float | None  # the same, if each run only followed its preference for positions


@dataclass(frozen=True)
class HardQuestion:
    """A question, how many runs miss it, and how likely they find the correct choice."""

    key: Key
    missed: int
    margin: float  # mean log-probability of the correct choices; NaN without choices


def common_misses(group: Group, permutations: int = 10_000, seed: int = 0) -> CommonMisses:
    """Count how many questions 0, 1, … all runs miss, and test whether their mistakes are independent.

    The expected counts are exact (Poisson-binomial). The test statistic is the variance of the number of misses per
    question; each run's answers are permuted among all questions, or within each subject for `p_within`. `p` is twice
    the smaller tail. The observed answers count as one of the permutations (Phipson and Smyth 2010), so `p` is never 0.

    No answers are actually shuffled. If a run's mistakes fall on random questions, the number of questions missed by k
    earlier runs that it misses too is hypergeometric. Drawing these numbers run by run gives the same distribution, at
    a cost that does not depend on the number of questions.
    """
    import numpy as np

    wrong = ~np.array(group.correct)
    runs, questions = wrong.shape
    observed = np.bincount(wrong.sum(axis=0), minlength=runs + 1)
    probabilities = np.ones(1)  # of k misses, as a Poisson-binomial distribution
    for rate in wrong.mean(axis=1):
        probabilities = np.convolve(probabilities, [1 - rate, rate])
    squares = np.arange(runs + 1) ** 2  # the mean number of misses is fixed, so the sum of squares gives the variance
    generator = np.random.default_rng(seed)

    def test(permuted: Array) -> tuple[float, float]:
        """Return the p-value and the excess variance."""
        statistics, statistic = permuted @ squares, observed @ squares
        tail = min(int((statistics >= statistic).sum()), int((statistics <= statistic).sum()))
        return min(1.0, 2 * (1 + tail) / (1 + permutations)), float(statistic - statistics.mean()) / questions

    permuted = _permute(wrong.sum(axis=1)[None], np.array([questions]), permutations, generator)
    low, high = np.quantile(permuted, [0.025, 0.975], axis=0, method="inverted_cdf")
    p, excess = p_within, excess_within = test(permuted)
    subjects = list(_indices_by_subject(group).values())
    if len(subjects) > 1:
        mistakes = np.array([wrong[:, indices].sum(axis=1) for indices in subjects])
        sizes = np.array([len(indices) for indices in subjects])
        p_within, excess_within = test(_permute(mistakes, sizes, permutations, generator))
    return CommonMisses(
        observed=observed.tolist(),
        expected=(questions * probabilities).tolist(),
        low=low.tolist(),
        high=high.tolist(),
        p=p,
        p_within=p_within,
        excess=excess,
        excess_within=excess_within,
    )


def _permute(mistakes: Array, sizes: Array, permutations: int, generator: Generator) -> Array:
    """Draw numbers of questions that 0, 1, … all runs miss, with mistakes on random questions of each subject.

    `mistakes` [subject, run] and `sizes` [subject] are numbers of questions. Returns [permutation, misses].
    """
    import numpy as np

    runs = mistakes.shape[1]
    blocks = []
    for first in range(0, permutations, BLOCK):
        shape = min(BLOCK, permutations - first), len(sizes)
        missed = np.zeros((*shape, runs + 1), dtype=np.int64)  # [..., k]: questions that k of the runs so far miss
        missed[..., 0] = sizes
        for run in range(runs):
            # Distribute this run's mistakes over the questions that 0, 1, … earlier runs miss.
            others, remaining = np.broadcast_to(sizes, shape), np.broadcast_to(mistakes[:, run], shape)
            newly_missed = np.zeros_like(missed)
            for k in range(run + 1):
                others = others - missed[..., k]
                drawn = generator.hypergeometric(missed[..., k], others, remaining) if k < run else remaining
                newly_missed[..., k] = drawn
                remaining = remaining - drawn
            missed -= newly_missed
            missed[..., 1:] += newly_missed[..., :-1]
        blocks.append(missed.sum(axis=1))
    return np.concatenate(blocks)


def overall(group: Group) -> list[Rate]:
    """Return each run's accuracy over all questions."""
    return [rate(sum(answers), len(answers)) for answers in group.correct]


def by_subject(group: Group) -> list[SubjectRow]:
    """Return each run's accuracy in each subject, and test whether the runs differ there."""
    correct, rows = group.correct, []
    for subject, indices in _indices_by_subject(group).items():
        answers = [[run[index] for index in indices] for run in correct]
        rates = [rate(sum(run), len(run)) for run in answers]
        rows.append(SubjectRow(subject, rates, cochran_q_test(answers)))
    return rows


def paired(group: Group) -> list[PairedDifference]:
    """Compare every pair of runs on the same questions."""
    import numpy as np

    correct = np.array(group.correct)
    rows = []
    for first, second in combinations(range(len(correct)), 2):
        both, only_first, only_second, neither = _fourfold(correct[first], correct[second])
        difference = (only_first - only_second) / len(group.keys)
        low, high = difference_interval(both, only_first, only_second, neither)
        p = mcnemar_test(only_first, only_second)
        rows.append(PairedDifference(first, second, only_first, only_second, difference, low, high, p))
    return rows


def overlaps(group: Group) -> list[Overlap]:
    """Compare the mistakes of every pair of runs: which questions they miss, and which wrong choices they make."""
    import numpy as np

    wrong = ~np.array(group.correct)
    questions = len(group.keys)
    preferences = wrong_choice_preferences(group, wrong) if group.has_choices else None
    chosen = np.array([[run.records[key]["prediction"] for key in group.keys] for run in group.runs])
    rows = []
    for first, second in combinations(range(len(wrong)), 2):
        both, only_first, only_second, neither = _fourfold(wrong[first], wrong[second])
        expected_both = (both + only_first) * (both + only_second) / questions
        expected_neither = (neither + only_first) * (neither + only_second) / questions
        either = both + only_first + only_second
        expected_either = either + both - expected_both
        agreement = (both + neither) / questions
        expected_agreement = (expected_both + expected_neither) / questions
        same = expected_same = None
        if preferences is not None and both:
            missed = wrong[first] & wrong[second]
            same = float((chosen[first] == chosen[second])[missed].mean())
            expected_same = float((preferences[first] * preferences[second]).sum(axis=1)[missed].mean())
        rows.append(
            Overlap(
                first=first,
                second=second,
                both_wrong=both,
                jaccard=both / either if either else math.nan,
                expected_jaccard=expected_both / expected_either if expected_either else math.nan,
                kappa=(agreement - expected_agreement) / (1 - expected_agreement)
                if expected_agreement < 1
                else math.nan,
                same_choice=same,
                expected_same=expected_same,
            )
        )
    return rows


def hardest_questions(group: Group, count: int) -> list[HardQuestion]:
    """Return the `count` questions that most runs miss; on ties the least likely correct choice first.

    Questions that no run misses are left out.
    """
    import numpy as np

    missed = (~np.array(group.correct)).sum(axis=0)
    margins = log_correct_probability(group).mean(axis=0) if group.has_choices else np.full(len(missed), math.nan)
    order = np.lexsort((np.nan_to_num(margins), -missed))[:count]
    return [HardQuestion(group.keys[i], int(missed[i]), float(margins[i])) for i in order if missed[i]]


def rate(right: int, n: int) -> Rate:
    """Return the accuracy of `right` correct answers out of `n`, with its interval."""
    return Rate(right, n, *wilson_interval(right, n))


def pool(members: Sequence[Sequence[Rate]]) -> list[Rate]:
    """Return each run's accuracy over the questions of several subjects: `members` is [subject][run]."""
    runs = zip(*members, strict=True)
    return [rate(sum(part.right for part in run), sum(part.n for part in run)) for run in runs]


def _indices_by_subject(group: Group) -> dict[str, list[int]]:
    """Return the indices of each subject's questions in `group.keys`."""
    indices: dict[str, list[int]] = {}
    for index, (subject, _) in enumerate(group.keys):
        indices.setdefault(subject, []).append(index)
    return indices


def _fourfold(first: Array, second: Array) -> tuple[int, int, int, int]:
    """Return the cells of a 2 x 2 table: counts of both, only the first, only the second, neither."""
    both, only_first = int((first & second).sum()), int((first & ~second).sum())
    only_second = int((~first & second).sum())
    return both, only_first, only_second, len(first) - both - only_first - only_second
