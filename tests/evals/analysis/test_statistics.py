"""Intervals and tests against brute force, closed forms and published examples."""

from __future__ import annotations

import math
from itertools import permutations, product

import numpy as np
import pytest

from evals.analysis import statistics
from evals.analysis.statistics import (
    chi_square_tail,
    cochran_q_test,
    difference_interval,
    holm_correction,
    mcnemar_test,
    wilson_interval,
)


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (3, 7), (59, 161), (7_000, 14_042)])
def test_wilson_ends_are_z_of_their_own_standard_errors_from_the_mean(right, n):
    low, high = wilson_interval(right, n)
    assert 0 <= low <= right / n <= high <= 1
    for end in {low, high} - {0.0, 1.0}:
        assert abs(right / n - end) == pytest.approx(statistics.Z * math.sqrt(end * (1 - end) / n), rel=1e-9)
    assert (low == 0) == (right == 0)
    assert (high == 1) == (right == n)
    assert wilson_interval(n - right, n) == pytest.approx((1 - high, 1 - low))


def test_without_questions_the_wilson_interval_is_everything():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_the_interval_of_a_difference_equals_the_published_one():
    # Cavo et al. (2012), in Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, chapter 8
    assert difference_interval(59, 6, 16, 80) == pytest.approx((-0.1186, -0.0046), abs=5e-5)
    assert mcnemar_test(6, 16) == pytest.approx(0.052479, abs=1e-6)


@pytest.mark.parametrize("table", [(5, 0, 0, 5), (0, 0, 0, 9), (9, 0, 0, 0), (0, 7, 0, 0), (0, 3, 4, 0), (1, 0, 0, 0)])
def test_the_interval_of_a_difference_contains_it_in_extreme_cases(table):
    both, only_first, only_second, neither = table
    difference, n = (only_first - only_second) / sum(table), sum(table)
    low, high = difference_interval(*table)
    assert -1 - 1e-9 <= low <= difference <= high <= 1 + 1e-9
    assert high - low > 0.5 / n
    assert difference_interval(both, only_second, only_first, neither) == pytest.approx((-high, -low))


def test_mcnemar_equals_an_enumeration_of_all_coin_tosses():
    for first, second in product(range(6), repeat=2):
        n = first + second
        heads = [sum(tosses) for tosses in product((0, 1), repeat=n)]
        as_extreme = [count for count in heads if abs(2 * count - n) >= abs(first - second)]
        assert mcnemar_test(first, second) == pytest.approx(len(as_extreme) / len(heads))
    assert mcnemar_test(7_000, 7_000) == 1.0
    assert 0 <= mcnemar_test(0, 14_042) < 1e-300


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10])
@pytest.mark.parametrize("value", [0.5, 3.0, 12.0])
def test_chi_square_tail_equals_the_integral_of_its_density(value, freedom):
    x = np.linspace(0, math.sqrt(value), 200_001)  # over the square root, where the density has no pole
    density = 2 * x ** (freedom - 1) * np.exp(-(x**2) / 2) / (2 ** (freedom / 2) * math.gamma(freedom / 2))
    assert chi_square_tail(value, freedom) == pytest.approx(1 - np.trapezoid(density, x), abs=1e-8)


def test_chi_square_tail_in_extreme_cases():
    assert chi_square_tail(0, 3) == chi_square_tail(5, 0) == 1.0
    assert chi_square_tail(1e5, 7) == 0.0
    assert chi_square_tail(1e-12, 1) == pytest.approx(1, abs=1e-5)


def cochran_by_enumeration(answers: list[list[bool]]) -> float:
    """Enumerate all ways to permute each question's answers among the runs."""
    squares = [
        sum(sum(run) ** 2 for run in zip(*questions, strict=True))
        for questions in product(*(list(permutations(question)) for question in zip(*answers, strict=True)))
    ]
    observed = sum(sum(run) ** 2 for run in answers)
    return sum(value >= observed for value in squares) / len(squares)


@pytest.mark.parametrize(
    "letters", ["++++ ---- ----", "++-+- +-+-- --+-+", "+++ +-- -+- ---", "+++++ +++++ +++++", "++ --"]
)
def test_cochran_equals_an_enumeration_if_questions_are_few(letters):
    answers = [[letter == "+" for letter in run] for run in letters.split()]
    assert cochran_q_test(answers) == pytest.approx(cochran_by_enumeration(answers))


def test_cochran_by_chi_square_is_close_to_the_exact_test(monkeypatch):
    generator = np.random.default_rng(0)
    for advantage in (0.0, 0.1, 0.2, 0.3):
        answers = (generator.random((3, 80)) < 0.4 + advantage * np.eye(3)[:, :1]).tolist()
        monkeypatch.setattr(statistics, "MAX_EXACT", 10**6)
        exact = cochran_q_test(answers)
        monkeypatch.setattr(statistics, "MAX_EXACT", 0)
        assert cochran_q_test(answers) == pytest.approx(exact, rel=0.1, abs=1e-4)


def test_cochran_s_statistic_equals_the_textbook_formula():
    answers = [[True] * 60 + [False] * 30, [True] * 40 + [False] * 50, [False] * 75 + [True] * 15]
    sizes = [sum(question) for question in zip(*answers, strict=True)]
    right = [sum(run) for run in answers]
    mean = sum(right) / 3
    statistic = 3 * 2 * sum((count - mean) ** 2 for count in right) / sum(size * (3 - size) for size in sizes)
    assert cochran_q_test(answers) == pytest.approx(math.exp(-statistic / 2))  # the tail for two degrees of freedom


def test_holm_multiplies_by_the_number_of_remaining_tests():
    assert holm_correction([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_correction([0.5, 0.6]) == [1.0, 1.0]
    assert holm_correction([]) == []


def test_holm_keeps_the_family_wise_error_rate():
    generator = np.random.default_rng(0)
    families = [min(holm_correction(generator.random(57).tolist())) < 0.05 for _ in range(2_000)]
    assert sum(families) / 2_000 < 0.07
