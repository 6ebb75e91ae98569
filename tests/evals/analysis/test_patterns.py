"""Patterns in mistakes: every number against brute force, loops over the records or real permutations."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, permutations, product

import numpy as np
import pytest

from evals.analysis.patterns import by_subject, common_misses, hardest_questions, overall, overlaps, paired, pool
from evals.analysis.statistics import cochran_q_test, mcnemar_test, wilson_interval
from evals.runs.collection import Group
from evals.runs.run_file import correct_choices
from tests.evals.synthetic import certain, group_of_answers, group_of_scores, write_and_load


def enumerate_misses(group: Group, within: bool) -> tuple[Counter[int], list[Counter[int]]]:
    """Enumerate all permutations of each run's answers, among all questions or within each subject.

    Returns how often each sum of squared misses occurs, and for k = 0, 1, … how often each number of questions that k
    runs miss occurs.
    """
    subjects = [subject if within else "" for subject, _ in group.keys]
    ways = []
    for answers in group.correct:
        parts = [
            [answer for answer, name in zip(answers, subjects, strict=True) if name == subject]
            for subject in sorted(set(subjects))
        ]
        ways.append([sum(way, ()) for way in product(*(sorted(set(permutations(part))) for part in parts))])
    squares: Counter[int] = Counter()
    numbers: list[Counter[int]] = [Counter() for _ in range(len(group.runs) + 1)]
    for way in product(*ways):
        misses = [question.count(False) for question in zip(*way, strict=True)]
        squares[sum(miss**2 for miss in misses)] += 1
        for k, counter in enumerate(numbers):
            counter[misses.count(k)] += 1
    return squares, numbers


def two_sided(counts: Counter[int], value: int) -> float:
    upper = sum(ways for other, ways in counts.items() if other >= value)
    lower = sum(ways for other, ways in counts.items() if other <= value)
    return min(1.0, 2 * min(upper, lower) / counts.total())


@pytest.mark.parametrize(
    ("answers", "subjects"),
    [
        (("+++---", "+++---"), "aaabbb"),
        (("++--+-", "-+-+--", "+-+--+"), "aabbbb"),
        (("+++-++", "---+--"), "aabbcc"),
        (("+-+-", "+-+-", "-+-+"), "aaaa"),
    ],
)
def test_common_misses_equal_an_enumeration_of_all_permutations(answers, subjects):
    group = group_of_answers(*answers, subjects=subjects)
    result = common_misses(group, 20_000)
    misses = [question.count(False) for question in zip(*group.correct, strict=True)]
    assert result.observed == [misses.count(k) for k in range(len(answers) + 1)]
    squares = sum(miss**2 for miss in misses)
    everywhere, numbers = enumerate_misses(group, within=False)
    assert result.p == pytest.approx(two_sided(everywhere, squares), abs=0.015)
    assert result.p_within == pytest.approx(two_sided(enumerate_misses(group, within=True)[0], squares), abs=0.015)
    for k, counter in enumerate(numbers):
        mean = sum(value * ways for value, ways in counter.items()) / counter.total()
        assert result.expected[k] == pytest.approx(mean)
        values = sorted(counter.elements())
        for ends, quantile in ((result.low, 0.025), (result.high, 0.975)):
            near = {values[min(len(values) - 1, int((quantile + shift) * len(values)))] for shift in (-0.01, 0, 0.01)}
            assert ends[k] in near
    excess = squares - sum(value * ways for value, ways in everywhere.items()) / everywhere.total()
    assert result.excess * len(misses) == pytest.approx(excess, abs=0.1)


def test_common_misses_of_many_questions_equal_real_permutations(tmp_path):
    group = write_and_load(tmp_path, {"a": 0.3, "b": 0.5, "c": 0.8, "d": 0.9}, subjects={"law": 100, "art": 300})
    result, generator = common_misses(group, 4_000), np.random.default_rng(1)
    wrong = ~np.array(group.correct)
    permuted = np.array([
        np.bincount(generator.permuted(wrong, axis=1).sum(axis=0), minlength=5) for _ in range(4_000)
    ])  # fmt: skip
    assert result.expected == pytest.approx(permuted.mean(axis=0).tolist(), abs=0.6)
    ends = np.quantile(permuted, [0.025, 0.975], axis=0)
    assert np.abs(np.array([result.low, result.high]) - ends).max() <= 2


def test_mistakes_that_differ_only_by_subject_are_random_within_subjects(tmp_path):
    rates = {"hard": 0.2, "easy": 0.9}
    group = write_and_load(tmp_path, dict.fromkeys("abc", rates), subjects={"hard": 150, "easy": 150}, shared=0.0)
    result = common_misses(group, 2_000)
    assert result.p < 0.002
    assert result.excess > 0
    assert result.p_within > 0.05


def test_the_sign_of_the_excess_tells_the_same_from_different_questions():
    same = common_misses(group_of_answers("+" * 20 + "-" * 20, "+" * 20 + "-" * 20), 1_000)
    different = common_misses(group_of_answers("+" * 20 + "-" * 20, "-" * 20 + "+" * 20), 1_000)
    assert same.p == different.p == pytest.approx(2 / 1_001)
    assert same.excess > 0 > different.excess
    assert different.observed == [0, 40, 0]


@pytest.mark.parametrize(
    "answers", [("++++", "++++"), ("----", "----"), ("++++", "----"), ("+-+-", "++++"), ("+", "-")]
)
def test_answers_with_a_single_permutation_have_p_1(answers):
    result = common_misses(group_of_answers(*answers), 200)
    assert result.p == result.p_within == 1.0
    assert result.excess == 0.0
    assert result.expected == pytest.approx(result.observed)
    assert result.low == result.high == result.observed


def test_the_same_seed_gives_the_same_permutations(tmp_path):
    group = write_and_load(tmp_path, {"a": 0.5, "b": 0.55})
    assert common_misses(group, 2_500, seed=3) == common_misses(group, 2_500, seed=3)
    assert len({common_misses(group, 2_500, seed=seed).p for seed in range(5)}) > 1


def test_eight_models_on_all_of_mmlu():
    subjects, size = 57, 246
    letters = np.where(np.random.default_rng(0).random((8, subjects * size)) < 0.6, "+", "-")
    names = "".join(chr(97 + number) * size for number in range(subjects))
    group = group_of_answers(*("".join(row) for row in letters), subjects=names)
    result = common_misses(group, 300)
    assert sum(result.observed) == subjects * size
    assert result.p > 0.01
    assert all(low <= mean <= high for low, mean, high in zip(result.low, result.expected, result.high, strict=True))
    assert len(by_subject(group)) == subjects
    assert len(paired(group)) == len(overlaps(group)) == 28


def test_rates_and_pairs_equal_counts_of_the_records(tmp_path):
    group = write_and_load(tmp_path, {"a": 0.4, "b": 0.6, "c": 0.7}, subjects={"law": 40, "art": 25})
    table = list(zip(*group.correct, strict=True))
    assert [rate.right for rate in overall(group)] == [sum(run) for run in group.correct]
    rows = by_subject(group)
    assert [row.subject for row in rows] == ["art", "law"]
    for row in rows:
        members = [answers for answers, key in zip(table, group.keys, strict=True) if key[0] == row.subject]
        runs = list(zip(*members, strict=True))
        assert [(rate.right, rate.n) for rate in row.rates] == [(sum(run), len(members)) for run in runs]
        assert row.rates[0].mean == row.rates[0].right / len(members)
        assert (row.rates[1].low, row.rates[1].high) == wilson_interval(row.rates[1].right, len(members))
        assert row.p == cochran_q_test(runs)
        assert row.spread == max(rate.mean for rate in row.rates) - min(rate.mean for rate in row.rates)
    assert pool([row.rates for row in rows]) == overall(group)
    for pair, (first, second) in zip(paired(group), combinations(range(3), 2), strict=True):
        assert (pair.first, pair.second) == (first, second)
        assert pair.only_first == sum(row[first] and not row[second] for row in table)
        assert pair.only_second == sum(row[second] and not row[first] for row in table)
        difference = (sum(group.correct[first]) - sum(group.correct[second])) / len(table)
        assert pair.difference == pytest.approx(difference)
        assert pair.low < pair.difference < pair.high
        assert pair.p == mcnemar_test(pair.only_first, pair.only_second)


def preference(records, record, choice):
    """Return how likely a run chooses this wrong choice of a question that it misses, by position alone."""

    def weight(position):
        if position in correct_choices(record) or position >= len(record["loglikelihoods"]):
            return 0.0
        missed = [row for row in records if not row["correct"] and position < len(row["loglikelihoods"])]
        possible = [row for row in missed if position not in correct_choices(row)]
        return sum(row["prediction"] == position for row in possible) / max(1, len(possible))

    return weight(choice) / sum(weight(position) for position in range(len(record["loglikelihoods"])))


@pytest.mark.parametrize("choices", [4, (3, 4, 5)])
def test_overlaps_equal_counts_of_the_records(tmp_path, choices):
    group = write_and_load(tmp_path, {"a": 0.4, "b": 0.6, "c": 0.3}, subjects={"law": 80}, choices=choices)
    records = [[run.records[key] for key in group.keys] for run in group.runs]
    for result in overlaps(group):
        first, second = records[result.first], records[result.second]
        wrong = [{index for index, row in enumerate(rows) if not row["correct"]} for rows in (first, second)]
        both, either, n = wrong[0] & wrong[1], wrong[0] | wrong[1], len(first)
        assert result.both_wrong == len(both)
        assert result.jaccard == len(both) / len(either)
        expected_both = len(wrong[0]) * len(wrong[1]) / n
        expected_either = len(wrong[0]) + len(wrong[1]) - expected_both
        assert result.expected_jaccard == pytest.approx(expected_both / expected_either)
        agreement = 1 - len(wrong[0] ^ wrong[1]) / n
        expected_agreement = expected_both / n + (1 - len(wrong[0]) / n) * (1 - len(wrong[1]) / n)
        assert result.kappa == pytest.approx((agreement - expected_agreement) / (1 - expected_agreement))
        same = [first[index]["prediction"] == second[index]["prediction"] for index in both]
        assert result.same_choice == pytest.approx(sum(same) / len(both))
        expected = [
            preference(first, first[index], choice) * preference(second, second[index], choice)
            for index in both
            for choice in range(len(first[index]["loglikelihoods"]))
        ]
        assert result.expected_same == pytest.approx(sum(expected) / len(both))


def test_a_shared_position_preference_explains_the_same_wrong_choices():
    always_first = [certain(0)] * 12
    (result,) = overlaps(group_of_scores(always_first, always_first, gold=[1, 2, 3] * 4))
    assert result.same_choice == result.expected_same == 1.0
    next_choice = [certain((right + 1) % 4) for right in [0, 1, 2, 3] * 10]
    (result,) = overlaps(group_of_scores(next_choice, next_choice, gold=[0, 1, 2, 3] * 10))
    assert result.same_choice == 1.0
    assert result.expected_same == pytest.approx(1 / 3)


def test_undefined_overlaps_are_nan_or_none():
    (result,) = overlaps(group_of_answers("+++", "+++"))
    assert result.both_wrong == 0
    assert math.isnan(result.jaccard)
    assert math.isnan(result.expected_jaccard)
    assert math.isnan(result.kappa)
    (result,) = overlaps(group_of_answers("--", "--"))
    assert (result.jaccard, result.expected_jaccard) == (1.0, 1.0)
    assert math.isnan(result.kappa)
    (result,) = overlaps(group_of_answers("+-", "-+"))
    assert (result.jaccard, result.kappa) == (0.0, -1.0)
    right = [certain(0), certain(1)]
    (result,) = overlaps(group_of_scores(right, right, gold=[0, 1]))
    assert result.same_choice is None
    assert result.expected_same is None


def test_identical_runs_overlap_fully(tmp_path):
    group = write_and_load(tmp_path, {"a": 0.5})
    group = Group(group.title, group.task, group.runs * 2, group.keys)
    (result,) = overlaps(group)
    assert (result.jaccard, result.kappa, result.same_choice) == (1.0, pytest.approx(1.0), 1.0)
    assert (paired(group)[0].difference, paired(group)[0].p) == (0.0, 1.0)
    assert common_misses(group, 500).observed[1] == 0


def test_generated_answers_have_no_same_choices(tmp_path):
    group = write_and_load(tmp_path, {"a": 0.4, "b": 0.6}, "gsm8k")
    assert overlaps(group)[0].same_choice is None
    assert math.isnan(hardest_questions(group, 1)[0].margin)


def test_the_hardest_questions_are_sorted_by_misses_then_by_probability(tmp_path):
    group = write_and_load(tmp_path, {"a": 0.4, "b": 0.6, "c": 0.5}, "truthfulqa", {"mc2": 60})
    result = hardest_questions(group, 1_000)
    missed = {key: sum(not run.records[key]["correct"] for run in group.runs) for key in group.keys}

    def margin(key):
        logs = []
        for run in group.runs:
            weights = [math.exp(score) for score in run.records[key]["loglikelihoods"]]
            right = sum(weights[choice] for choice in run.records[key]["gold"])
            logs.append(math.log(right / sum(weights)))
        return sum(logs) / len(logs)

    expected = sorted((key for key in group.keys if missed[key]), key=lambda key: (-missed[key], margin(key)))
    assert [question.key for question in result] == expected
    assert [question.missed for question in result] == [missed[key] for key in expected]
    assert [question.margin for question in result] == pytest.approx([margin(key) for key in expected])
    assert hardest_questions(group, 3) == result[:3]
    assert hardest_questions(group, 0) == []


def test_questions_that_no_run_misses_are_not_among_the_hardest():
    assert hardest_questions(group_of_answers("++", "++"), 5) == []
    keys = [question.key for question in hardest_questions(group_of_answers("+-+-", "+--+"), 5)]
    assert keys == [("a", 1), ("a", 2), ("a", 3)]
