"""Scores of judges -> means with intervals, differences of models, agreement of passes. No torch; numpy when called.

Means are those of FastChat's `show_result`: judgments without a score are left out, and the mean over both turns is the
mean over all scores. Undefined values are NaN.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, Any

from evals.analysis.verdicts import Agreement, PairResult, WinRate, pair_results, verdict_agreement, win_rates
from evals.runs.judged import NO_SCORE, Judgment
from evals.runs.judged_folder import JudgeFiles

if TYPE_CHECKING:
    from numpy import ndarray

    Array = ndarray[Any, Any]

RESAMPLES, SEED = 10_000, 0
SCALE = 1, 10  # that judges are asked for
CLOSE = 1  # points between two scores that still agree
Scores = Mapping[tuple[int, int], float]  # of one model, by question and turn


@dataclass(frozen=True)
class Mean:
    """Mean of `count` scores and its 95 % interval; the interval is NaN for fewer than two questions."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class ModelScores:
    """Scores of one model by one judge, from the first pass; the agreement is that of all passes."""

    model: str
    turns: Mapping[int, Mean]  # turns 1 and 2
    overall: Mean
    categories: Mapping[str, Mean]
    judged: int
    unscored: int
    deviation: float  # standard deviation of the scores
    distinct: int  # number of different scores
    outside: int  # scores outside `SCALE`
    agreement: Agreement


@dataclass(frozen=True)
class ScoreDifference:
    """Mean of the first model's score minus the second's, over the judgments in which both have a score."""

    first: str
    second: str
    points: Mean

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.points.low > 0 or self.points.high < 0


@dataclass(frozen=True)
class JudgeAnalysis:
    """All statistics of one judge. Models are sorted by mean score or adjusted win rate, the best first."""

    judge: str
    models: list[ModelScores]
    deviation: float  # standard deviation of all scores
    distinct: int  # number of different scores
    differences: list[ScoreDifference]  # of every two models, in the order of `models`
    preference: Mean | None  # see `self_preference`
    wins: list[WinRate]
    pairs: list[PairResult]
    verdicts: Agreement  # of passes over comparisons

    @property
    def agreement(self) -> Agreement:
        """Agreement of passes over the scores of all models."""
        parts = [model.agreement for model in self.models]
        return Agreement(*(sum(getattr(part, name) for part in parts) for name in ("both", "same", "close")))


def analyse(judges: Sequence[JudgeFiles], categories: Mapping[int, str]) -> list[JudgeAnalysis]:
    """Compute all statistics of each judge. `categories`: of questions, as far as they are known."""
    scores = [[scores_by_model(judgments) for judgments in files.single] or [{}] for files in judges]
    result = []
    for number, (files, passes) in enumerate(zip(judges, scores, strict=True)):
        others = [first for index, (first, *_) in enumerate(scores) if index != number]
        preference = self_preference(files.judge, passes[0], others)
        result.append(_analyse(files, passes, preference, categories))
    return result


def _analyse(
    files: JudgeFiles,
    scores: Sequence[Mapping[str, Scores]],
    preference: Mean | None,
    categories: Mapping[int, str],
) -> JudgeAnalysis:
    first = files.single[0] if files.single else []
    values = [score for by_key in scores[0].values() for score in by_key.values()]
    counts = Counter(judgment.model for judgment in first)
    models = []
    for model, judged in counts.items():
        agreement = score_agreement([by_model.get(model, {}) for by_model in scores])
        models.append(_model_scores(model, scores[0].get(model, {}), judged, categories, agreement))
    models.sort(key=lambda row: (math.isnan(row.overall.mean), -row.overall.mean, row.model))
    names = [row.model for row in models]
    differences = [score_difference(one, other, scores[0]) for one, other in combinations(names, 2)]
    compared = files.pair[0] if files.pair else []
    return JudgeAnalysis(
        judge=files.judge,
        models=models,
        deviation=_deviation(values),
        distinct=len(set(values)),
        preference=preference,
        differences=[row for row in differences if row.points.count],
        wins=win_rates(compared),
        pairs=pair_results(compared),
        verdicts=verdict_agreement(files.pair),
    )


def scores_by_model(judgments: Iterable[Judgment]) -> dict[str, dict[tuple[int, int], float]]:
    """Return the scores by model, question and turn. Judgments without a score are left out."""
    result: dict[str, dict[tuple[int, int], float]] = {}
    for judgment in judgments:
        if judgment.score != NO_SCORE:
            result.setdefault(judgment.model, {})[judgment.question_id, judgment.turn] = judgment.score
    return result


def _model_scores(
    model: str, scores: Scores, judged: int, categories: Mapping[int, str], agreement: Agreement
) -> ModelScores:
    by_category: dict[str, dict[tuple[int, int], float]] = {}
    for (question, turn), score in scores.items():
        if question in categories:
            by_category.setdefault(categories[question], {})[question, turn] = score
    values = list(scores.values())
    return ModelScores(
        model=model,
        turns={turn: mean_score({key: score for key, score in scores.items() if key[1] == turn}) for turn in (1, 2)},
        overall=mean_score(scores),
        categories={name: mean_score(part) for name, part in by_category.items()},
        judged=judged,
        unscored=judged - len(values),
        deviation=_deviation(values),
        distinct=len(set(values)),
        outside=sum(not SCALE[0] <= value <= SCALE[1] for value in values),
        agreement=agreement,
    )


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def mean_score(scores: Scores) -> Mean:
    """Return the mean of scores and its 95 % bootstrap interval.

    Questions are resampled with both their turns, because a question's turns are not independent. Percentile method
    (Efron 1979).
    """
    if not scores:
        return Mean(math.nan, math.nan, math.nan, 0)
    mean = math.fsum(scores.values()) / len(scores)
    sums: dict[int, float] = {}
    for (question, _), score in scores.items():
        sums[question] = sums.get(question, 0.0) + score
    if len(sums) < 2:
        return Mean(mean, math.nan, math.nan, len(scores))
    import numpy as np

    counts = Counter(question for question, _ in scores)
    columns = np.array([[sums[question], counts[question]] for question in sorted(sums)])
    totals = _resamples(len(columns)) @ columns  # [R, 2]
    low, high = np.percentile(totals[:, 0] / totals[:, 1], [2.5, 97.5])
    return Mean(mean, float(low), float(high), len(scores))


@lru_cache(maxsize=16)
def _resamples(questions: int) -> Array:
    """Return how often each bootstrap sample draws each question: float64 [RESAMPLES, questions].

    Models that were asked the same questions share the samples.
    """
    import numpy as np

    generator = np.random.default_rng(SEED)
    return generator.multinomial(questions, [1 / questions] * questions, size=RESAMPLES).astype(np.float64)


def score_difference(first: str, second: str, scores: Mapping[str, Scores]) -> ScoreDifference:
    """Compare two models, paired by question and turn, with a bootstrap interval over questions."""
    one, other = scores.get(first, {}), scores.get(second, {})
    paired = {key: one[key] - other[key] for key in one if key in other}
    return ScoreDifference(first, second, mean_score(paired))


def score_agreement(passes: Sequence[Scores]) -> Agreement:
    """Count how often two passes give the same score, or one at most one point apart."""
    gaps = [abs(one[key] - other[key]) for one, other in combinations(passes, 2) for key in one.keys() & other.keys()]
    return Agreement(len(gaps), sum(gap == 0 for gap in gaps), sum(gap <= CLOSE for gap in gaps))


def self_preference(judge: str, scores: Mapping[str, Scores], others: Sequence[Mapping[str, Scores]]) -> Mean | None:
    """Return how much better a judge scores its own answers than other judges do, against other models' answers.

    `scores`: the judge's, `others`: those of each other judge, by model. Per question: mean over its own answers of
    (score - mean of the other judges' scores), minus that over the other models' answers. None if no question has both.
    """
    own: dict[int, list[float]] = {}
    rest: dict[int, list[float]] = {}
    for model, by_key in scores.items():
        for key, score in by_key.items():
            seen = [other[model][key] for other in others if key in other.get(model, {})]
            if seen:
                (own if model == judge else rest).setdefault(key[0], []).append(score - statistics.fmean(seen))
    gaps = {
        (question, 0): statistics.fmean(own[question]) - statistics.fmean(rest[question])
        for question in own.keys() & rest
    }
    return mean_score(gaps) if gaps else None
