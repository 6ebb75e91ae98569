"""Confidence intervals and hypothesis tests for counts. Pure: no numpy, no torch.

All tests are two-sided. They are exact where that is cheap; docstrings name the approximations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

Z = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations
MAX_EXACT = 3_000  # states to enumerate; beyond it Cochran's Q is close to chi-square (Tate and Brown 1970)


def wilson_interval(right: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson 1927). It stays in [0, 1] and holds for small counts."""
    if n == 0:
        return 0.0, 1.0
    mean, square = right / n, Z * Z / n
    centre = (mean + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(mean * (1 - mean) / n + square / (4 * n))
    return (0.0 if right == 0 else centre - half), (1.0 if right == n else centre + half)


def difference_interval(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference between two paired proportions.

    Newcombe's method 10 (1998, Statistics in Medicine 17): it combines the two Wilson intervals with their correlation.
    Wald's interval would have no width if two runs agree everywhere.
    """
    n = both + only_first + only_second + neither
    right_1, right_2 = both + only_first, both + only_second
    mean_1, mean_2 = right_1 / n, right_2 / n
    (low_1, high_1), (low_2, high_2) = wilson_interval(right_1, n), wilson_interval(right_2, n)
    product = both * neither - only_first * only_second
    corrected = max(product - n / 2, 0) if product > 0 else product
    margins = right_1 * (n - right_1) * right_2 * (n - right_2)
    phi = corrected / math.sqrt(margins) if margins else 0.0

    def distance(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    down, up = distance(mean_1 - low_1, high_2 - mean_2), distance(high_1 - mean_1, mean_2 - low_2)
    return mean_1 - mean_2 - down, mean_1 - mean_2 + up


def mcnemar_test(only_first: int, only_second: int) -> float:
    """Return the p-value of McNemar's exact test (1947) that two runs are equally good.

    Arguments: numbers of questions that only the first or only the second run answered correctly.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    ways = tail = 1
    for picked in range(fewer):
        ways = ways * (n - picked) // (picked + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**n)


def cochran_q_test(answers: Sequence[Sequence[bool]]) -> float:
    """Return the p-value of Cochran's Q test (1950) that all runs are equally good; McNemar's test for two runs.

    `answers`: [run][question], True for correct. Under the null hypothesis the runs that answered a question correctly
    are a random subset of all runs. Exact if few questions separate the runs (up to 54 for three runs), otherwise by
    the chi-square approximation.
    """
    runs = len(answers)
    separating = [question for question in zip(*answers, strict=True) if 0 < sum(question) < runs]
    if not separating:
        return 1.0
    right = [sum(run) for run in zip(*separating, strict=True)]
    if runs == 2:
        return mcnemar_test(*right)
    sizes = [sum(question) for question in separating]  # number of runs that answered each correctly
    squares = sum(count * count for count in right)
    if len(separating) ** (runs - 1) < MAX_EXACT:
        return _cochran_exact(runs, sizes, squares)
    total = sum(sizes)
    statistic = (runs - 1) * (runs * squares - total**2) / (runs * total - sum(size * size for size in sizes))
    return chi_square_tail(statistic, runs - 1)


def _cochran_exact(runs: int, sizes: Sequence[int], min_squares: int) -> float:
    """Return the fraction of all assignments of correct answers to runs whose sum of squares is at least `min_squares`.

    `sizes`: how many runs answered each question correctly.
    """
    ways = Counter({(0,) * runs: 1})  # sorted correct counts of the runs -> number of assignments
    for size in sizes:
        extended: Counter[tuple[int, ...]] = Counter()
        for counts, number in ways.items():
            for chosen in combinations(range(runs), size):
                extended[tuple(sorted(count + (run in chosen) for run, count in enumerate(counts)))] += number
        ways = extended
    tail = sum(number for counts, number in ways.items() if sum(count * count for count in counts) >= min_squares)
    return tail / ways.total()


def chi_square_tail(value: float, freedom: int) -> float:
    """Return P(chi-square >= `value`) for `freedom` degrees; Abramowitz and Stegun (1964), 26.4.4 and 26.4.5."""
    if value <= 0 or freedom == 0:
        return 1.0
    half = value / 2
    odd = freedom % 2
    powers = [step + odd / 2 for step in range(freedom // 2)]
    terms = [math.exp(power * math.log(half) - half - math.lgamma(power + 1)) for power in powers]
    return min(1.0, sum(terms) + (math.erfc(math.sqrt(half)) if odd else 0.0))


def holm_correction(ps: Sequence[float]) -> list[float]:
    """Correct p-values for multiple tests (Holm 1979), so that 5 % is the family-wise error rate at 0.05.

    The smallest is multiplied by the number of tests, the next by one less, and so on; none is smaller than the one
    before.
    """
    result, largest = [1.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        result[index] = largest
    return result
