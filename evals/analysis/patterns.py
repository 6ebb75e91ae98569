"""What the mistakes of several runs have in common: pure functions of a group of runs. No torch; numpy when called.

Runs are named by their places in `group.runs`. What cannot be said, such as the agreement of two runs without a
mistake, is NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from evals.analysis.calibration import Bin, Calibration, ChoiceBias, calibration, choice_bias, log_right, preferences
from evals.analysis.statistics import cochran, difference, mcnemar, wilson

if TYPE_CHECKING:
    from numpy import ndarray
    from numpy.random import Generator

    from evals.runs.collection import Group
    from evals.runs.run_file import Key

    Array = ndarray[Any, Any]

__all__ = ["Bin", "Calibration", "ChoiceBias", "calibration", "choice_bias", "wilson"]  # besides its own

BLOCK = 2_000  # permutations at a time: some MB


@dataclass(frozen=True)
class Rate:
    """How many of some questions a run met, and the 95 % interval of its accuracy (Wilson's)."""

    right: int
    n: int
    low: float
    high: float

    @property
    def mean(self) -> float:
        """The accuracy."""
        return self.right / self.n


@dataclass(frozen=True)
class SubjectRow:
    """A subject: each run's accuracy, and the p-value of their being alike (Cochran's Q; McNemar's test for two)."""

    subject: str
    rates: list[Rate]
    p: float

    @property
    def spread(self) -> float:
        """How far the best run is from the worst."""
        means = [rate.mean for rate in self.rates]
        return max(means) - min(means)


@dataclass(frozen=True)
class Paired:
    """Two runs on the same questions: those that only one met, the difference of their accuracies, McNemar's p."""

    first: int
    second: int
    only_first: int
    only_second: int
    difference: float  # the first's accuracy less the second's
    low: float  # its 95 % interval, Newcombe's
    high: float
    p: float


@dataclass(frozen=True)
class Misses:
    """How many questions so many runs miss, beside what independent mistakes would give.

    `p` is how rarely independent mistakes are so unevenly spread over the questions, or so evenly; `p_within` the same
    where each subject keeps its number of mistakes. `excess` tells which of the two it is: by how much the variance of
    the number of misses is larger than it would be; the models miss the same questions where it is more than 0.
    """

    observed: list[int]  # of questions that 0, 1, … all runs miss
    expected: list[float]
    low: list[float]  # 2.5 and 97.5 % of the permutations
    high: list[float]
    p: float
    p_within: float
    excess: float = 0.0
    excess_within: float = 0.0


@dataclass(frozen=True)
class Overlap:
    """How alike the mistakes of two runs are."""

    first: int
    second: int
    both_wrong: int
    jaccard: float  # of the questions that either misses, the share that both miss
    expected_jaccard: float  # of the numbers that independent mistakes would give in the mean
    kappa: float  # Cohen's (1960), of right and wrong: 1 is full agreement, 0 what chance gives
    same_choice: float | None  # of the questions that both miss, the share with the same wrong choice
    expected_same: float | None  # if each kept only its own preference for places among wrong choices


@dataclass(frozen=True)
class Hard:
    """A question, how many runs miss it, and the mean log-probability of what is right (NaN without choices)."""

    key: Key
    missed: int
    margin: float


def common_misses(group: Group, permutations: int = 10_000, seed: int = 0) -> Misses:
    """How many questions 0, 1, … all runs miss, and what the same numbers of independent mistakes would give.

    The expected numbers are exact (Poisson-binomial). The test statistic is the variance of the number of misses by
    question; each run's answers are shuffled among all questions, or within each subject for `p_within`. `p` is twice
    the smaller tail, the observed answers counted as one of the permutations (Phipson and Smyth 2010), so never 0.

    No question is shuffled in fact. How many of the questions that k runs miss the next run misses too, if its
    mistakes fall anywhere, is hypergeometric; drawing that, run by run, gives the same distribution at a cost that
    does not grow with the number of questions.
    """
    import numpy as np

    wrong = ~np.array(group.correct)
    runs, questions = wrong.shape
    observed = np.bincount(wrong.sum(axis=0), minlength=runs + 1)
    chances = np.ones(1)
    for rate in wrong.mean(axis=1):
        chances = np.convolve(chances, [1 - rate, rate])
    squares = np.arange(runs + 1) ** 2  # the mean of misses is fixed, so their squares tell the variance
    generator = np.random.default_rng(seed)

    def judge(shuffled: Array) -> tuple[float, float]:
        """The p-value, and the excess of the variance."""
        spread, found = shuffled @ squares, observed @ squares
        tail = min(int((spread >= found).sum()), int((spread <= found).sum()))
        return min(1.0, 2 * (1 + tail) / (1 + permutations)), float(found - spread.mean()) / questions

    anywhere = _shuffle(wrong.sum(axis=1)[None], np.array([questions]), permutations, generator)
    low, high = np.quantile(anywhere, [0.025, 0.975], axis=0, method="inverted_cdf")
    p, excess = p_within, excess_within = judge(anywhere)
    places = list(_places(group).values())
    if len(places) > 1:
        mistakes = np.array([wrong[:, own].sum(axis=1) for own in places])
        sizes = np.array([len(own) for own in places])
        p_within, excess_within = judge(_shuffle(mistakes, sizes, permutations, generator))
    return Misses(
        observed=observed.tolist(),
        expected=(questions * chances).tolist(),
        low=low.tolist(),
        high=high.tolist(),
        p=p,
        p_within=p_within,
        excess=excess,
        excess_within=excess_within,
    )


def _shuffle(mistakes: Array, sizes: Array, permutations: int, generator: Generator) -> Array:
    """How many questions 0, 1, … all runs miss [permutation, misses], if mistakes fall anywhere within a subject.

    `mistakes` [subject, run] and `sizes` [subject] are numbers of questions.
    """
    import numpy as np

    runs = mistakes.shape[1]
    blocks = []
    for first in range(0, permutations, BLOCK):
        shape = min(BLOCK, permutations - first), len(sizes)
        missed = np.zeros((*shape, runs + 1), dtype=np.int64)  # questions that so many runs miss
        missed[..., 0] = sizes
        for run in range(runs):
            left, to_fall = np.broadcast_to(sizes, shape), np.broadcast_to(mistakes[:, run], shape)
            fallen = np.zeros_like(missed)
            for misses in range(run + 1):
                here = missed[..., misses]
                left = left - here
                fallen[..., misses] = generator.hypergeometric(here, left, to_fall) if misses < run else to_fall
                to_fall = to_fall - fallen[..., misses]
            missed -= fallen
            missed[..., 1:] += fallen[..., :-1]
        blocks.append(missed.sum(axis=1))
    return np.concatenate(blocks)


def overall(group: Group) -> list[Rate]:
    """Each run's accuracy over all questions."""
    return [_rate(sum(own), len(own)) for own in group.correct]


def by_subject(group: Group) -> list[SubjectRow]:
    """Each run's accuracy in each subject, and whether the runs differ there."""
    correct, rows = group.correct, []
    for subject, places in _places(group).items():
        answers = [[own[place] for place in places] for own in correct]
        rows.append(SubjectRow(subject, [_rate(sum(own), len(own)) for own in answers], cochran(answers)))
    return rows


def paired(group: Group) -> list[Paired]:
    """Every pair of runs, on the same questions."""
    import numpy as np

    correct = np.array(group.correct)
    rows = []
    for first, second in combinations(range(len(correct)), 2):
        both, only_first, only_second, neither = _fourfold(correct[first], correct[second])
        share = (only_first - only_second) / len(group.keys)
        low, high = difference(both, only_first, only_second, neither)
        p = mcnemar(only_first, only_second)
        rows.append(Paired(first, second, only_first, only_second, share, low, high, p))
    return rows


def overlaps(group: Group) -> list[Overlap]:
    """Every pair of runs, by what they miss and what they choose instead."""
    import numpy as np

    wrong = ~np.array(group.correct)
    questions = len(group.keys)
    likely = preferences(group, wrong) if group.has_choices else None
    chosen = np.array([[run.records[key]["prediction"] for key in group.keys] for run in group.runs])
    rows = []
    for first, second in combinations(range(len(wrong)), 2):
        both, one, other, neither = _fourfold(wrong[first], wrong[second])
        common = (both + one) * (both + other) / questions  # expected
        either = 2 * both + one + other - common
        chance = (common + (neither + one) * (neither + other) / questions) / questions
        agreement = (both + neither) / questions
        same = expected_same = None
        if likely is not None and both:
            missed = wrong[first] & wrong[second]
            same = float((chosen[first] == chosen[second])[missed].mean())
            expected_same = float((likely[first] * likely[second]).sum(axis=1)[missed].mean())
        rows.append(
            Overlap(
                first=first,
                second=second,
                both_wrong=both,
                jaccard=both / (both + one + other) if both + one + other else math.nan,
                expected_jaccard=common / either if either else math.nan,
                kappa=(agreement - chance) / (1 - chance) if chance < 1 else math.nan,
                same_choice=same,
                expected_same=expected_same,
            )
        )
    return rows


def hardest(group: Group, count: int) -> list[Hard]:
    """The questions that most runs miss, those first where what is right is least likely; none that nobody misses."""
    import numpy as np

    missed = (~np.array(group.correct)).sum(axis=0)
    margins = log_right(group).mean(axis=0) if group.has_choices else np.full(len(missed), math.nan)
    order = np.lexsort((np.nan_to_num(margins), -missed))[:count]
    return [Hard(group.keys[at], int(missed[at]), float(margins[at])) for at in order if missed[at]]


def _places(group: Group) -> dict[str, list[int]]:
    """Where in `group.keys` each subject's questions are."""
    places: dict[str, list[int]] = {}
    for place, (subject, _) in enumerate(group.keys):
        places.setdefault(subject, []).append(place)
    return places


def _rate(right: int, n: int) -> Rate:
    return Rate(right, n, *wilson(right, n))


def _fourfold(first: Array, second: Array) -> tuple[int, int, int, int]:
    """How many are true of both, of the first alone, of the second alone, of neither."""
    both, one, other = int((first & second).sum()), int((first & ~second).sum()), int((~first & second).sum())
    return both, one, other, len(first) - both - one - other
