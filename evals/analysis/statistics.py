"""What chance alone would do: intervals and p-values of counts. Pure: no numpy, no torch.

All tests are two-sided. They are exact where that is cheap; else it is said what is approximate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

Z = 1.959963984540054  # the normal distribution holds 95 % within so many standard deviations
MOST_WAYS = 3_000  # counted one by one; for more Cochran's Q is close to chi-square (Tate and Brown 1970)


def wilson(right: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion: Wilson's (1927), which stays in 0…1 and is right for few and for extremes."""
    if n == 0:
        return 0.0, 1.0
    mean, square = right / n, Z * Z / n
    middle = (mean + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(mean * (1 - mean) / n + square / (4 * n))
    return (0.0 if right == 0 else middle - half), (1.0 if right == n else middle + half)


def difference(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """The 95 % interval of the difference between two proportions of the same questions.

    Newcombe's (1998, Statistics in Medicine 17, method 10): Wilson's intervals of the two, put together with their
    correlation. Wald's would have no width where two runs agree everywhere.
    """
    n = both + only_first + only_second + neither
    ones, others = both + only_first, both + only_second
    first, second = ones / n, others / n
    (low_1, high_1), (low_2, high_2) = wilson(ones, n), wilson(others, n)
    product = both * neither - only_first * only_second
    corrected = max(product - n / 2, 0) if product > 0 else product
    margins = ones * (n - ones) * others * (n - others)
    phi = corrected / math.sqrt(margins) if margins else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    down, up = reach(first - low_1, high_2 - second), reach(high_1 - first, second - low_2)
    return first - second - down, first - second + up


def mcnemar(only_first: int, only_second: int) -> float:
    """Whether two runs differ: McNemar's test (1947), exact: of the questions that one met, does each have half?"""
    n, fewer = only_first + only_second, min(only_first, only_second)
    ways = tail = 1
    for picked in range(fewer):
        ways = ways * (n - picked) // (picked + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**n)


def cochran(answers: Sequence[Sequence[bool]]) -> float:
    """Whether runs differ, from each run's answers, right or wrong: Cochran's Q test (1950); McNemar's for two runs.

    If they don't, then of a question that some runs met it could as well have been others, as many. Exact where few
    questions tell the runs apart (54 for three runs), else by chi-square.
    """
    runs = len(answers)
    apart = [question for question in zip(*answers, strict=True) if 0 < sum(question) < runs]
    met = [sum(own) for own in zip(*apart, strict=True)]
    sizes = [sum(question) for question in apart]  # how many runs met each
    if not apart:
        return 1.0
    if runs == 2:
        return mcnemar(*met)
    squares = sum(own * own for own in met)
    if len(apart) ** (runs - 1) < MOST_WAYS:
        return _by_all_ways(runs, sizes, squares)
    total = sum(sizes)
    statistic = (runs - 1) * (runs * squares - total**2) / (runs * total - sum(size * size for size in sizes))
    return chi_square(statistic, runs - 1)


def _by_all_ways(runs: int, sizes: Sequence[int], least: int) -> float:
    """The share of all ways to deal right answers to runs whose numbers, squared and added, reach `least`."""
    ways = Counter({(0,) * runs: 1})  # how many right answers the runs have -> in how many ways; the order is no matter
    for size in sizes:
        dealt: Counter[tuple[int, ...]] = Counter()
        for numbers, count in ways.items():
            for those in combinations(range(runs), size):
                dealt[tuple(sorted(own + (run in those) for run, own in enumerate(numbers)))] += count
        ways = dealt
    reached = sum(count for numbers, count in ways.items() if sum(own * own for own in numbers) >= least)
    return reached / ways.total()


def chi_square(value: float, freedom: int) -> float:
    """The probability that chi-square is at least `value`; Abramowitz and Stegun (1964), 26.4.4 and 26.4.5."""
    if value <= 0 or freedom == 0:
        return 1.0
    half = value / 2
    odd = freedom % 2
    powers = [step + odd / 2 for step in range(freedom // 2)]
    terms = [math.exp(power * math.log(half) - half - math.lgamma(power + 1)) for power in powers]
    return min(1.0, sum(terms) + (math.erfc(math.sqrt(half)) if odd else 0.0))


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values of several tests, so enlarged that only 1 in 20 such families has one below 0.05 by chance.

    Holm (1979): the smallest times their number, the next times one less, and none smaller than the one before.
    """
    result, largest = [1.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        result[place] = largest
    return result
