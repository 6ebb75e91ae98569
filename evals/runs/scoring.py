"""Log-likelihoods -> predictions -> accuracies, as lm-evaluation-harness adds them up. Pure: no model, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence


def predict(loglikelihoods: Sequence[float]) -> int:
    """The most likely choice; the first one wins a tie."""
    return max(range(len(loglikelihoods)), key=lambda i: (loglikelihoods[i], -i))


def accuracy(correct: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error: the sample's standard deviation over √n (NaN for a single one)."""
    n = len(correct)
    mean = sum(correct) / n
    if n == 1:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in correct) / (n - 1)
    return mean, math.sqrt(variance / n)


def pooled_stderr(stderrs: Sequence[float], sizes: Sequence[int]) -> float:
    """The standard error of a micro average over several subjects."""
    freedom = sum(sizes) - len(sizes)
    if freedom <= 0:
        return math.nan
    variance = sum((n - 1) * stderr**2 * n for stderr, n in zip(stderrs, sizes, strict=True) if n > 1) / freedom
    return math.sqrt(variance / sum(sizes))


def predict_by_length(loglikelihoods: Sequence[float], choices: Sequence[str]) -> int:
    """The choice that is likeliest for each of its characters: what acc_norm counts."""
    return predict([score / len(own) if own else -math.inf for score, own in zip(loglikelihoods, choices, strict=True)])
