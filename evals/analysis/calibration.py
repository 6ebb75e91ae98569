"""Choice bias and calibration of runs with multiple-choice questions. No torch; numpy is imported when called.

Runs are given by their index in `group.runs`. A choice's position is its index among the choices of a question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals.analysis.statistics import chi_square_tail
from evals.runs.run_file import correct_choices

if TYPE_CHECKING:
    from numpy import ndarray

    from evals.runs.collection import Group

    Array = ndarray[Any, Any]


@dataclass(frozen=True)
class ChoiceBias:
    """How often a run chooses each position, how often each is correct, and the p-value of no bias."""

    run: int
    chosen: list[float]
    right: list[float]
    p: float


@dataclass(frozen=True)
class Bin:
    """Answers with a confidence in [low, high): their number, mean confidence and accuracy."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Confidence and accuracy of a run. Empty bins are left out."""

    run: int
    bins: list[Bin]
    ece: float  # expected calibration error: mean of |accuracy - confidence| over bins, weighted by answers
    confidence: float
    accuracy: float


def choice_bias(group: Group) -> list[ChoiceBias]:
    """Test each run for a preference for positions among the choices.

    Empty if positions cannot be compared: without choices, if questions differ in their number of choices, or if a
    question has several correct ones. The test is Stuart's (1955) and Maxwell's (1970), by chi-square: chosen and
    correct positions belong to the same questions, so they are not independent.
    """
    import numpy as np

    if not group.has_choices:
        return []
    scores, right = choice_arrays(group)
    if not np.isfinite(scores).all() or (right.sum(axis=1) != 1).any():
        return []
    positions, rows = right.shape[1], []
    for run, run_scores in enumerate(scores):
        table = np.zeros((positions, positions))  # [chosen, correct]
        np.add.at(table, (run_scores.argmax(axis=1), right.argmax(axis=1)), 1)
        chosen, correct = table.sum(axis=1), table.sum(axis=0)
        variance = np.diag(chosen + correct) - table - table.T
        excess = chosen - correct
        statistic = float(excess @ np.linalg.pinv(variance) @ excess)
        p = chi_square_tail(statistic, int(np.linalg.matrix_rank(variance)))
        rows.append(ChoiceBias(run, (chosen / len(right)).tolist(), (correct / len(right)).tolist(), p))
    return rows


def calibration(group: Group, bins: int = 10) -> list[Calibration]:
    """Compare each run's confidence with its accuracy; empty without choices.

    The confidence is the largest softmax probability of the choices' log-likelihoods. Bins have equal width; the
    calibration error is that of Naeini, Cooper and Hauskrecht (2015).
    """
    import numpy as np

    if not group.has_choices:
        return []
    confidences = np.exp(log_softmax(choice_arrays(group)[0])).max(axis=-1)
    rows = []
    for run, (confidence, right) in enumerate(zip(confidences, np.array(group.correct), strict=True)):
        index = np.minimum((confidence * bins).astype(int), bins - 1)
        filled = []
        for number in range(bins):
            mask = index == number
            if mask.any():
                means = float(confidence[mask].mean()), float(right[mask].mean())
                filled.append(Bin(number / bins, (number + 1) / bins, int(mask.sum()), *means))
        ece = sum(bin_.n * abs(bin_.accuracy - bin_.confidence) for bin_ in filled) / len(right)
        rows.append(Calibration(run, filled, ece, float(confidence.mean()), float(right.mean())))
    return rows


def wrong_choice_preferences(group: Group, wrong: Array) -> list[Array]:
    """Model each run's wrong answers by position only: P(choice | the run answers wrong), [question, position] per run.

    A position's weight is how often the run chose it, out of its wrong answers to questions where it is a wrong choice.
    `wrong`: [run, question].
    """
    import numpy as np

    scores, right = choice_arrays(group)
    wrong_choices = np.isfinite(scores[0]) & ~right
    result = []
    for run_scores, missed in zip(scores, wrong, strict=True):
        picked = np.bincount(run_scores[missed].argmax(axis=1), minlength=right.shape[1])
        weights = wrong_choices * (picked / np.maximum(wrong_choices[missed].sum(axis=0), 1))
        result.append(weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300))
    return result


def log_correct_probability(group: Group) -> Array:
    """Return the log-probability that each run assigns to the correct choices: [run, question]."""
    import numpy as np

    scores, right = choice_arrays(group)
    return np.log((np.exp(log_softmax(scores)) * right).sum(axis=-1).clip(1e-300))


def choice_arrays(group: Group) -> tuple[Array, Array]:
    """Return log-likelihoods [run, question, position], padded with -inf, and correct choices [question, position]."""
    import numpy as np

    width = max(len(group.runs[0].records[key]["loglikelihoods"]) for key in group.keys)

    def padded(scores: Sequence[float]) -> list[float]:
        return [*scores, *[-math.inf] * (width - len(scores))]

    scores = np.array([[padded(run.records[key]["loglikelihoods"]) for key in group.keys] for run in group.runs])
    right = np.zeros((len(group.keys), width), dtype=bool)
    for question, key in enumerate(group.keys):
        right[question, correct_choices(group.runs[0].records[key])] = True
    return scores, right


def log_softmax(scores: Array) -> Array:
    """Return log-probabilities over the last axis."""
    import numpy as np

    centred = scores - scores.max(axis=-1, keepdims=True)
    return centred - np.log(np.exp(centred).sum(axis=-1, keepdims=True))
