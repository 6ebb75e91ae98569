"""Log-likelihoods -> predictions -> accuracies, aggregated as in lm-evaluation-harness. Pure: no model, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence


def predict(loglikelihoods: Sequence[float]) -> int:
    """Return the index of the most likely choice; the first one wins a tie."""
    return max(range(len(loglikelihoods)), key=lambda i: (loglikelihoods[i], -i))


def predict_normalized(loglikelihoods: Sequence[float], choices: Sequence[str]) -> int:
    """Return the index of the choice with the highest log-likelihood per character, which `acc_norm` counts."""
    pairs = zip(loglikelihoods, choices, strict=True)
    return predict([score / len(choice) if choice else -math.inf for score, choice in pairs])


def accuracy(correct: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error: the sample standard deviation over √n (NaN if n is 1)."""
    n = len(correct)
    mean = sum(correct) / n
    if n == 1:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in correct) / (n - 1)
    return mean, math.sqrt(variance / n)


def pooled_stderr(stderrs: Sequence[float], sizes: Sequence[int]) -> float:
    """Return the standard error of a micro average over several subjects."""
    freedom = sum(sizes) - len(sizes)
    if freedom <= 0:
        return math.nan
    variance = sum((n - 1) * stderr**2 * n for stderr, n in zip(stderrs, sizes, strict=True) if n > 1) / freedom
    return math.sqrt(variance / sum(sizes))
