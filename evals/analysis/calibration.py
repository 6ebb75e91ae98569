"""What the choices of several runs tell: places they prefer, how sure they are. No torch; numpy when called.

Runs are named by their places in `group.runs`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals.analysis.statistics import chi_square
from evals.runs.run_file import right_choices

if TYPE_CHECKING:
    from numpy import ndarray

    from evals.runs.collection import Group

    Array = ndarray[Any, Any]


@dataclass(frozen=True)
class ChoiceBias:
    """How often a run chooses each place, and how often that is right; `p` of both being alike."""

    run: int
    chosen: list[float]
    right: list[float]
    p: float


@dataclass(frozen=True)
class Bin:
    """Answers of a confidence from `low` to `high`, with their mean confidence and accuracy."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Whether a run is right as often as it is confident; bins without an answer are left out."""

    run: int
    bins: list[Bin]
    ece: float  # expected calibration error: the mean distance of confidence and accuracy over the bins' answers
    confidence: float
    accuracy: float


def choice_bias(group: Group) -> list[ChoiceBias]:
    """Whether runs prefer some places among the choices; [] where places cannot be compared.

    That is where questions have different numbers of choices, or several right ones. The test is Stuart's (1955) and
    Maxwell's (1970), by chi-square: what is chosen and what is right are of the same questions, so not independent.
    """
    import numpy as np

    if not group.has_choices:
        return []
    scores, right = choices(group)
    if not np.isfinite(scores).all() or (right.sum(axis=1) != 1).any():
        return []
    places, rows = right.shape[1], []
    for run, own in enumerate(scores):
        table = np.zeros((places, places))
        np.add.at(table, (own.argmax(axis=1), right.argmax(axis=1)), 1)
        chosen, correct = table.sum(axis=1), table.sum(axis=0)
        variance = np.diag(chosen + correct) - table - table.T
        more = chosen - correct
        value = float(more @ np.linalg.pinv(variance) @ more)
        p = chi_square(value, int(np.linalg.matrix_rank(variance)))
        rows.append(ChoiceBias(run, (chosen / len(right)).tolist(), (correct / len(right)).tolist(), p))
    return rows


def calibration(group: Group, bins: int = 10) -> list[Calibration]:
    """Whether runs know what they know; [] without choices.

    The confidence is the softmax of the choices' log-likelihoods at the likeliest. Bins are of equal width; the error
    is Naeini, Cooper and Hauskrecht's (2015).
    """
    import numpy as np

    if not group.has_choices:
        return []
    confidences = np.exp(log_softmax(choices(group)[0])).max(axis=-1)
    rows = []
    for run, (confidence, right) in enumerate(zip(confidences, np.array(group.correct), strict=True)):
        place = np.minimum((confidence * bins).astype(int), bins - 1)
        held = [
            Bin(at / bins, (at + 1) / bins, int(own.sum()), float(confidence[own].mean()), float(right[own].mean()))
            for at in range(bins)
            if (own := place == at).any()
        ]
        ece = sum(own.n * abs(own.accuracy - own.confidence) for own in held) / len(right)
        rows.append(Calibration(run, held, ece, float(confidence.mean()), float(right.mean())))
    return rows


def preferences(group: Group, wrong: Array) -> list[Array]:
    """Of each run, how likely each wrong choice is at each question that it misses [question, place], by place alone.

    A place's weight is how often the run chose it, of the times it missed a question where that was a wrong choice.
    """
    import numpy as np

    scores, right = choices(group)
    open_places = np.isfinite(scores[0]) & ~right
    result = []
    for own, missed in zip(scores, wrong, strict=True):
        picked = np.bincount(own[missed].argmax(axis=1), minlength=right.shape[1])
        weights = open_places * (picked / np.maximum(open_places[missed].sum(axis=0), 1))
        result.append(weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300))
    return result


def log_right(group: Group) -> Array:
    """The log-probability that each run gives to what is right [run, question]."""
    import numpy as np

    scores, right = choices(group)
    return np.log((np.exp(log_softmax(scores)) * right).sum(axis=-1).clip(1e-300))


def choices(group: Group) -> tuple[Array, Array]:
    """Log-likelihoods [run, question, place], -inf where there is none; what is right [question, place]."""
    import numpy as np

    most = max(len(group.runs[0].records[key]["loglikelihoods"]) for key in group.keys)

    def padded(scores: Sequence[float]) -> list[float]:
        return [*scores, *[-math.inf] * (most - len(scores))]

    scores = np.array([[padded(run.records[key]["loglikelihoods"]) for key in group.keys] for run in group.runs])
    right = np.zeros((len(group.keys), most), dtype=bool)
    for place, key in enumerate(group.keys):
        right[place, right_choices(group.runs[0].records[key])] = True
    return scores, right


def log_softmax(scores: Array) -> Array:
    """Log-likelihoods -> log-probabilities among the choices."""
    import numpy as np

    centred = scores - scores.max(axis=-1, keepdims=True)
    return centred - np.log(np.exp(centred).sum(axis=-1, keepdims=True))
