"""What mistakes have in common: every number against brute force, closed forms or published examples."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, permutations, product
from pathlib import Path

import numpy as np
import pytest

from evals.analysis import statistics as chance
from evals.analysis.patterns import (
    by_subject,
    calibration,
    choice_bias,
    common_misses,
    hardest,
    overall,
    overlaps,
    paired,
    wilson,
)
from evals.analysis.statistics import chi_square, cochran, difference, holm, mcnemar
from evals.runs import collection as runs
from evals.runs.collection import Group, Run
from evals.runs.run_file import right_choices
from tests.evals.synthetic import make


def group(*answers: str, subjects: str = "") -> Group:
    """Runs by their answers, a letter each: + is right, - is wrong; and the subject of each question."""
    names = subjects or "a" * len(answers[0])
    keys = [(subject, place) for place, subject in enumerate(names)]
    made = [
        Run(
            Path(str(place)),
            {},
            {key: record(letter == "+") for key, letter in zip(keys, own, strict=True)},
            str(place),
        )
        for place, own in enumerate(answers)
    ]
    return Group("a title", "gsm8k", made, sorted(keys))


def record(right: bool) -> dict[str, object]:
    return {"correct": right, "prediction": "yes" if right else "no", "response": "so", "gold": ["yes"]}


def chosen(*scores: list[list[float]], gold: list[int | list[int]]) -> Group:
    """Runs by the log-likelihoods of the choices of each question."""
    made = []
    for place, own in enumerate(scores):
        records = {}
        for index, (row, right) in enumerate(zip(own, gold, strict=True)):
            prediction = max(range(len(row)), key=row.__getitem__)
            fact = prediction == right if isinstance(right, int) else prediction in right
            records["a", index] = {"loglikelihoods": row, "gold": right, "prediction": prediction, "correct": fact}
        made.append(Run(Path(str(place)), {}, records, str(place)))
    return Group("a title", "mmlu", made, [("a", index) for index in range(len(gold))])


def loaded(folder: Path, *args: object, **kwargs: object) -> Group:
    make(folder, *args, **kwargs)  # type: ignore[arg-type]
    (own,) = runs.groups(runs.load([str(folder)]))
    return own


def sure(place: int, places: int = 4) -> list[float]:
    return [0.0 if own == place else -20.0 for own in range(places)]


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (3, 7), (59, 161), (7_000, 14_042)])
def test_wilson_s_ends_are_as_far_as_their_own_standard_error_allows(right, n):
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1
    for end in {low, high} - {0.0, 1.0}:
        assert abs(right / n - end) == pytest.approx(chance.Z * math.sqrt(end * (1 - end) / n), rel=1e-9)
    assert (low == 0) == (right == 0)
    assert (high == 1) == (right == n)
    assert wilson(n - right, n) == pytest.approx((1 - high, 1 - low))


def test_nothing_is_known_of_no_question():
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_interval_of_a_difference_is_the_published_one():
    # Cavo et al. (2012), in Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, chapter 8
    assert difference(59, 6, 16, 80) == pytest.approx((-0.1186, -0.0046), abs=5e-5)
    assert mcnemar(6, 16) == pytest.approx(0.052479, abs=1e-6)


@pytest.mark.parametrize("table", [(5, 0, 0, 5), (0, 0, 0, 9), (9, 0, 0, 0), (0, 7, 0, 0), (0, 3, 4, 0), (1, 0, 0, 0)])
def test_the_interval_of_a_difference_holds_it_at_the_extremes(table):
    both, first, second, neither = table
    found, n = (first - second) / sum(table), sum(table)
    low, high = difference(*table)
    assert -1 - 1e-9 <= low <= found <= high <= 1 + 1e-9
    assert high - low > 0.5 / n
    assert difference(both, second, first, neither) == pytest.approx((-high, -low))


def test_mcnemar_is_the_share_of_all_ways_to_toss_the_questions():
    for first, second in product(range(6), repeat=2):
        ways = [sum(own) for own in product((0, 1), repeat=first + second)]
        as_far = [way for way in ways if abs(2 * way - len(range(first + second))) >= abs(first - second)]
        assert mcnemar(first, second) == pytest.approx(len(as_far) / len(ways))
    assert mcnemar(7_000, 7_000) == 1.0
    assert 0 <= mcnemar(0, 14_042) < 1e-300


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10])
@pytest.mark.parametrize("value", [0.5, 3.0, 12.0])
def test_chi_square_is_the_area_under_its_density(value, freedom):
    x = np.linspace(0, math.sqrt(value), 200_001)  # of the root, where the density has no pole
    density = 2 * x ** (freedom - 1) * np.exp(-(x**2) / 2) / (2 ** (freedom / 2) * math.gamma(freedom / 2))
    assert chi_square(value, freedom) == pytest.approx(1 - np.trapezoid(density, x), abs=1e-8)


def test_chi_square_holds_at_the_extremes():
    assert chi_square(0, 3) == chi_square(5, 0) == 1.0
    assert chi_square(1e5, 7) == 0.0
    assert chi_square(1e-12, 1) == pytest.approx(1, abs=1e-5)


def cochran_by_hand(answers: list[list[bool]]) -> float:
    """All ways in which each question's answers could have been dealt to the runs."""
    ways = [
        sum(sum(own) ** 2 for own in zip(*questions, strict=True))
        for questions in product(*(list(permutations(question)) for question in zip(*answers, strict=True)))
    ]
    found = sum(sum(own) ** 2 for own in answers)
    return sum(way >= found for way in ways) / len(ways)


@pytest.mark.parametrize(
    "words", ["++++ ---- ----", "++-+- +-+-- --+-+", "+++ +-- -+- ---", "+++++ +++++ +++++", "++ --"]
)
def test_cochran_s_test_is_the_share_of_all_ways_where_questions_are_few(words):
    answers = [[letter == "+" for letter in own] for own in words.split()]
    assert cochran(answers) == pytest.approx(cochran_by_hand(answers))


def test_cochran_s_test_by_chi_square_is_close_to_the_exact_one(monkeypatch):
    generator = np.random.default_rng(0)
    for better in (0.0, 0.1, 0.2, 0.3):
        answers = (generator.random((3, 80)) < 0.4 + better * np.eye(3)[:, :1]).tolist()
        monkeypatch.setattr(chance, "MOST_WAYS", 10**6)
        exact = cochran(answers)
        monkeypatch.setattr(chance, "MOST_WAYS", 0)
        assert cochran(answers) == pytest.approx(exact, rel=0.1, abs=1e-4)


def test_cochran_s_statistic_is_the_textbook_s():
    answers = [[True] * 60 + [False] * 30, [True] * 40 + [False] * 50, [False] * 75 + [True] * 15]
    sizes = [sum(question) for question in zip(*answers, strict=True)]
    met = [sum(own) for own in answers]
    mean = sum(met) / 3
    statistic = 3 * 2 * sum((own - mean) ** 2 for own in met) / sum(size * (3 - size) for size in sizes)
    assert cochran(answers) == pytest.approx(math.exp(-statistic / 2))  # of two degrees of freedom


def test_holm_enlarges_by_the_number_of_tests_that_are_left():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
    generator = np.random.default_rng(0)
    families = [min(holm(generator.random(57).tolist())) < 0.05 for _ in range(2_000)]
    assert sum(families) / 2_000 < 0.07


def spreads(own: Group, within: bool) -> tuple[Counter[int], list[Counter[int]]]:
    """Over all ways in which each run's answers could lie: sums of squares, and numbers of questions by misses."""
    subjects = [subject if within else "" for subject, _ in own.keys]
    dealt = []
    for answers in own.correct:
        parts = [
            [answer for answer, name in zip(answers, subjects, strict=True) if name == subject]
            for subject in sorted(set(subjects))
        ]
        dealt.append([sum(ways, ()) for ways in product(*(sorted(set(permutations(part))) for part in parts))])
    counts: Counter[int] = Counter()
    seen: list[Counter[int]] = [Counter() for _ in range(len(own.runs) + 1)]
    for way in product(*dealt):
        misses = [question.count(False) for question in zip(*way, strict=True)]
        counts[sum(miss**2 for miss in misses)] += 1
        for number, counter in enumerate(seen):
            counter[misses.count(number)] += 1
    return counts, seen


def two_sided(counts: Counter[int], found: int) -> float:
    upper = sum(ways for value, ways in counts.items() if value >= found)
    lower = sum(ways for value, ways in counts.items() if value <= found)
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
def test_common_misses_are_those_of_all_ways_in_which_mistakes_could_lie(answers, subjects):
    own = group(*answers, subjects=subjects)
    found = common_misses(own, 20_000)
    observed = [question.count(False) for question in zip(*own.correct, strict=True)]
    assert found.observed == [observed.count(number) for number in range(len(answers) + 1)]
    squares = sum(number**2 for number in observed)
    everywhere, seen = spreads(own, within=False)
    assert found.p == pytest.approx(two_sided(everywhere, squares), abs=0.015)
    assert found.p_within == pytest.approx(two_sided(spreads(own, within=True)[0], squares), abs=0.015)
    for number, counter in enumerate(seen):
        mean = sum(value * ways for value, ways in counter.items()) / counter.total()
        assert found.expected[number] == pytest.approx(mean)
        listed = sorted(counter.elements())
        for end, place in ((found.low, 0.025), (found.high, 0.975)):
            near = {listed[min(len(listed) - 1, int((place + shift) * len(listed)))] for shift in (-0.01, 0, 0.01)}
            assert end[number] in near
    excess = squares - sum(value * ways for value, ways in everywhere.items()) / everywhere.total()
    assert found.excess * len(observed) == pytest.approx(excess, abs=0.1)


def test_common_misses_of_many_questions_are_those_of_real_shuffles(tmp_path):
    own = loaded(tmp_path, {"a": 0.3, "b": 0.5, "c": 0.8, "d": 0.9}, subjects={"law": 100, "art": 300})
    found, generator = common_misses(own, 4_000), np.random.default_rng(1)
    wrong = ~np.array(own.correct)
    shuffled = np.array([
        np.bincount(generator.permuted(wrong, axis=1).sum(axis=0), minlength=5) for _ in range(4_000)
    ])  # fmt: skip
    assert found.expected == pytest.approx(shuffled.mean(axis=0).tolist(), abs=0.6)
    ends = np.quantile(shuffled, [0.025, 0.975], axis=0)
    assert np.abs(np.array([found.low, found.high]) - ends).max() <= 2


def test_mistakes_that_subjects_explain_are_random_within_them(tmp_path):
    rates = {"hard": 0.2, "easy": 0.9}
    own = loaded(tmp_path, {"a": rates, "b": rates, "c": rates}, subjects={"hard": 150, "easy": 150}, shared=0.0)
    found = common_misses(own, 2_000)
    assert found.p < 0.002
    assert found.excess > 0
    assert found.p_within > 0.05


def test_mistakes_on_different_questions_are_told_from_those_on_the_same():
    same = common_misses(group("+" * 20 + "-" * 20, "+" * 20 + "-" * 20), 1_000)
    other = common_misses(group("+" * 20 + "-" * 20, "-" * 20 + "+" * 20), 1_000)
    assert same.p == other.p == pytest.approx(2 / 1_001)
    assert same.excess > 0 > other.excess
    assert other.observed == [0, 40, 0]


@pytest.mark.parametrize(
    "answers", [("++++", "++++"), ("----", "----"), ("++++", "----"), ("+-+-", "++++"), ("+", "-")]
)
def test_where_mistakes_could_lie_in_one_way_nothing_is_unlikely(answers):
    found = common_misses(group(*answers), 200)
    assert found.p == found.p_within == 1.0
    assert found.excess == 0.0
    assert found.expected == pytest.approx(found.observed)
    assert found.low == found.high == found.observed


def test_the_seed_repeats_the_permutations(tmp_path):
    own = loaded(tmp_path, {"a": 0.5, "b": 0.55})
    assert common_misses(own, 2_500, seed=3) == common_misses(own, 2_500, seed=3)
    assert len({common_misses(own, 2_500, seed=seed).p for seed in range(5)}) > 1


def test_eight_models_on_all_of_mmlu(tmp_path):
    letters = np.where(np.random.default_rng(0).random((8, 57 * 246)) < 0.6, "+", "-")
    own = group(*("".join(row) for row in letters), subjects="".join(chr(97 + place) * 246 for place in range(57)))
    found = common_misses(own, 300)
    assert sum(found.observed) == 57 * 246
    assert found.p > 0.01
    assert all(low <= mean <= high for low, mean, high in zip(found.low, found.expected, found.high, strict=True))
    assert len(by_subject(own)) == 57
    assert len(paired(own)) == len(overlaps(own)) == 28


def test_rates_and_pairs_are_counted(tmp_path):
    own = loaded(tmp_path, {"a": 0.4, "b": 0.6, "c": 0.7}, subjects={"law": 40, "art": 25})
    table = list(zip(*own.correct, strict=True))
    assert [rate.right for rate in overall(own)] == [sum(column) for column in own.correct]
    rows = by_subject(own)
    assert [row.subject for row in rows] == ["art", "law"]
    for row in rows:
        mine = [answers for answers, key in zip(table, own.keys, strict=True) if key[0] == row.subject]
        assert [(rate.right, rate.n) for rate in row.rates] == [
            (sum(run), len(mine)) for run in zip(*mine, strict=True)
        ]
        assert row.rates[0].mean == row.rates[0].right / len(mine)
        assert (row.rates[1].low, row.rates[1].high) == wilson(row.rates[1].right, len(mine))
        assert row.p == cochran(list(zip(*mine, strict=True)))
        assert row.spread == max(rate.mean for rate in row.rates) - min(rate.mean for rate in row.rates)
    for pair, (first, second) in zip(paired(own), combinations(range(3), 2), strict=True):
        assert (pair.first, pair.second) == (first, second)
        assert pair.only_first == sum(row[first] and not row[second] for row in table)
        assert pair.only_second == sum(row[second] and not row[first] for row in table)
        assert pair.difference == pytest.approx((sum(own.correct[first]) - sum(own.correct[second])) / len(table))
        assert pair.low < pair.difference < pair.high
        assert pair.p == mcnemar(pair.only_first, pair.only_second)


@pytest.mark.parametrize("places", [4, (3, 4, 5)])
def test_overlaps_are_counted(tmp_path, places):
    own = loaded(tmp_path, {"a": 0.4, "b": 0.6, "c": 0.3}, subjects={"law": 80}, choices=places)
    records = [[run.records[key] for key in own.keys] for run in own.runs]
    for found in overlaps(own):
        one, other = records[found.first], records[found.second]
        wrong = [{place for place, row in enumerate(rows) if not row["correct"]} for rows in (one, other)]
        both, either, n = wrong[0] & wrong[1], wrong[0] | wrong[1], len(one)
        assert found.both_wrong == len(both)
        assert found.jaccard == len(both) / len(either)
        common = len(wrong[0]) * len(wrong[1]) / n
        assert found.expected_jaccard == pytest.approx(common / (len(wrong[0]) + len(wrong[1]) - common))
        agree = 1 - len(wrong[0] ^ wrong[1]) / n
        luck = common / n + (1 - len(wrong[0]) / n) * (1 - len(wrong[1]) / n)
        assert found.kappa == pytest.approx((agree - luck) / (1 - luck))
        same = [one[place]["prediction"] == other[place]["prediction"] for place in both]
        assert found.same_choice == pytest.approx(sum(same) / len(both))
        expected = [
            sum(math.prod(habit(rows, row, place) for rows, row in ((one, one[at]), (other, other[at]))) for place in
                range(len(one[at]["loglikelihoods"])))
            for at in both
        ]  # fmt: skip
        assert found.expected_same == pytest.approx(sum(expected) / len(both))


def habit(rows, question, place):
    """How likely a run's habits make this wrong choice of a question that it misses."""

    def weight(at):
        if at in right_choices(question) or at >= len(question["loglikelihoods"]):
            return 0.0
        missed = [row for row in rows if not row["correct"] and at < len(row["loglikelihoods"])]
        could = [row for row in missed if at not in right_choices(row)]
        return sum(row["prediction"] == at for row in could) / max(1, len(could))

    return weight(place) / sum(weight(at) for at in range(len(question["loglikelihoods"])))


def test_a_habit_explains_the_same_wrong_choices():
    always = [sure(0)] * 12
    (found,) = overlaps(chosen(always, always, gold=[1, 2, 3] * 4))
    assert found.same_choice == found.expected_same == 1.0
    turns = [sure((right + 1) % 4) for right in [0, 1, 2, 3] * 10]
    (found,) = overlaps(chosen(turns, turns, gold=[0, 1, 2, 3] * 10))
    assert found.same_choice == 1.0
    assert found.expected_same == pytest.approx(1 / 3)


def test_of_mistakes_that_are_not_there_nothing_is_said():
    (found,) = overlaps(group("+++", "+++"))
    assert found.both_wrong == 0
    assert math.isnan(found.jaccard)
    assert math.isnan(found.expected_jaccard)
    assert math.isnan(found.kappa)
    (found,) = overlaps(group("--", "--"))
    assert (found.jaccard, found.expected_jaccard) == (1.0, 1.0)
    assert math.isnan(found.kappa)
    (found,) = overlaps(group("+-", "-+"))
    assert (found.jaccard, found.kappa) == (0.0, -1.0)
    (found,) = overlaps(chosen([sure(0), sure(1)], [sure(0), sure(1)], gold=[0, 1]))
    assert found.same_choice is None
    assert found.expected_same is None


def test_identical_runs_agree_in_full(tmp_path):
    own = loaded(tmp_path, {"a": 0.5})
    own = Group(own.title, own.task, own.runs * 2, own.keys)
    (found,) = overlaps(own)
    assert (found.jaccard, found.kappa, found.same_choice) == (1.0, pytest.approx(1.0), 1.0)
    assert (paired(own)[0].difference, paired(own)[0].p) == (0.0, 1.0)
    assert common_misses(own, 500).observed[1] == 0


def test_answers_in_words_have_no_choices(tmp_path):
    own = loaded(tmp_path, {"a": 0.4, "b": 0.6}, "gsm8k")
    assert choice_bias(own) == []
    assert calibration(own) == []
    assert overlaps(own)[0].same_choice is None
    assert math.isnan(hardest(own, 1)[0].margin)


def test_the_bias_of_two_choices_is_mcnemar_s():
    gold = [0] * 30 + [1] * 30
    answers = [sure(0, 2)] * 25 + [sure(1, 2)] * 5 + [sure(0, 2)] * 14 + [sure(1, 2)] * 16
    (found,) = choice_bias(chosen(answers, gold=gold))
    assert found.chosen == [39 / 60, 21 / 60]
    assert found.right == [0.5, 0.5]
    assert found.p == pytest.approx(math.erfc(math.sqrt((14 - 5) ** 2 / (14 + 5) / 2)))


def test_bias_is_told_from_none():
    gold = [0, 1, 2, 3] * 20
    always, never = choice_bias(chosen([sure(0)] * 80, [sure(place) for place in gold], gold=gold))
    assert (always.run, never.run) == (0, 1)
    assert always.chosen == [1.0, 0.0, 0.0, 0.0]
    assert always.p < 1e-9
    assert never.chosen == never.right == [0.25] * 4
    assert never.p == 1.0


def test_of_unbiased_runs_one_in_twenty_looks_biased():
    generator, ps = np.random.default_rng(0), []
    for _ in range(300):
        gold = generator.integers(4, size=80).tolist()
        guessed = generator.integers(4, size=80).tolist()
        known = generator.random(80) < 0.4
        answers = [sure(right if knows else guess) for right, guess, knows in zip(gold, guessed, known, strict=True)]
        ps += [found.p for found in choice_bias(chosen(answers, gold=gold))]
    assert 0.02 < np.mean(np.array(ps) < 0.05) < 0.08


def test_places_are_compared_where_every_question_has_the_same(tmp_path):
    assert choice_bias(loaded(tmp_path / "arc", {"a": 0.5}, "arc", {"easy": 30}, choices=(4, 5))) == []
    assert choice_bias(loaded(tmp_path / "mc2", {"a": 0.5}, "truthfulqa", {"mc2": 30})) == []
    assert len(choice_bias(loaded(tmp_path / "hellaswag", {"a": 0.5}, "hellaswag"))) == 1


def test_calibration_knows_the_sure_and_the_doubtful():
    gold = [0, 1] * 10
    certain, wrong, even = calibration(
        chosen([sure(place) for place in gold], [sure(0)] * 20, [[-1.0] * 4] * 20, gold=gold)
    )
    assert (certain.ece, certain.confidence, certain.accuracy) == pytest.approx((0, 1, 1), abs=1e-6)
    assert (wrong.ece, wrong.accuracy) == pytest.approx((0.5, 0.5), abs=1e-6)
    assert (even.ece, even.confidence, even.accuracy) == pytest.approx((0.25, 0.25, 0.5))
    (only,) = even.bins
    assert (only.low, only.high, only.n) == (0.2, 0.3, 20)
    (only,) = certain.bins
    assert (only.low, only.high) == (0.9, 1.0)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_is_counted(tmp_path, bins):
    own = loaded(tmp_path, {"a": 0.4, "b": 0.6}, choices=(3, 4, 5))
    for found in calibration(own, bins):
        answers = []
        for key in own.keys:
            row = own.runs[found.run].records[key]
            powers = [math.exp(score) for score in row["loglikelihoods"]]
            answers.append((max(powers) / sum(powers), row["correct"]))
        error = 0.0
        for held in found.bins:
            mine = [answer for answer in answers if held.low <= answer[0] < held.high or answer[0] == held.high == 1]
            assert held.n == len(mine)
            assert held.confidence == pytest.approx(sum(sure for sure, _ in mine) / len(mine))
            assert held.accuracy == pytest.approx(sum(right for _, right in mine) / len(mine))
            error += abs(held.accuracy - held.confidence) * len(mine) / len(answers)
        assert sum(held.n for held in found.bins) == len(answers)
        assert found.ece == pytest.approx(error)
        assert found.confidence == pytest.approx(sum(sure for sure, _ in answers) / len(answers))


def test_the_hardest_are_missed_by_most_and_then_least_likely_right(tmp_path):
    own = loaded(tmp_path, {"a": 0.4, "b": 0.6, "c": 0.5}, "truthfulqa", {"mc2": 60})
    found = hardest(own, 1_000)
    missed = {key: sum(not run.records[key]["correct"] for run in own.runs) for key in own.keys}

    def margin(key):
        logs = []
        for run in own.runs:
            powers = [math.exp(score) for score in run.records[key]["loglikelihoods"]]
            logs.append(math.log(sum(powers[place] for place in run.records[key]["gold"]) / sum(powers)))
        return sum(logs) / len(logs)

    expected = sorted((key for key in own.keys if missed[key]), key=lambda key: (-missed[key], margin(key)))
    assert [one.key for one in found] == expected
    assert [one.missed for one in found] == [missed[key] for key in expected]
    assert [one.margin for one in found] == pytest.approx([margin(key) for key in expected])
    assert hardest(own, 3) == found[:3]
    assert hardest(own, 0) == []


def test_what_nobody_misses_is_not_hard():
    assert hardest(group("++", "++"), 5) == []
    assert [one.key for one in hardest(group("+-+-", "+--+"), 5)] == [("a", 1), ("a", 2), ("a", 3)]
