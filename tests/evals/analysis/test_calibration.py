"""Choice bias and calibration, against closed forms and loops over the records."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evals.analysis.calibration import calibration, choice_bias
from tests.evals.synthetic import certain, group_of_scores, write_and_load


def test_generated_answers_have_neither_bias_nor_calibration(tmp_path):
    group = write_and_load(tmp_path, {"a": 0.4, "b": 0.6}, "gsm8k")
    assert choice_bias(group) == []
    assert calibration(group) == []


def test_the_bias_test_of_two_choices_is_mcnemar_s():
    gold = [0] * 30 + [1] * 30
    answers = [certain(0, 2)] * 25 + [certain(1, 2)] * 5 + [certain(0, 2)] * 14 + [certain(1, 2)] * 16
    (bias,) = choice_bias(group_of_scores(answers, gold=gold))
    assert bias.chosen == [39 / 60, 21 / 60]
    assert bias.right == [0.5, 0.5]
    assert bias.p == pytest.approx(math.erfc(math.sqrt((14 - 5) ** 2 / (14 + 5) / 2)))


def test_a_biased_run_is_told_from_an_unbiased_one():
    gold = [0, 1, 2, 3] * 20
    always, never = choice_bias(group_of_scores([certain(0)] * 80, [certain(choice) for choice in gold], gold=gold))
    assert (always.run, never.run) == (0, 1)
    assert always.chosen == [1.0, 0.0, 0.0, 0.0]
    assert always.p < 1e-9
    assert never.chosen == never.right == [0.25] * 4
    assert never.p == 1.0


def test_five_percent_of_unbiased_runs_look_biased():
    generator, ps = np.random.default_rng(0), []
    for _ in range(300):
        gold = generator.integers(4, size=80).tolist()
        guesses = generator.integers(4, size=80).tolist()
        known = generator.random(80) < 0.4
        answers = [
            certain(right if is_known else guess) for right, guess, is_known in zip(gold, guesses, known, strict=True)
        ]
        ps += [bias.p for bias in choice_bias(group_of_scores(answers, gold=gold))]
    assert 0.02 < np.mean(np.array(ps) < 0.05) < 0.08


def test_bias_needs_one_right_choice_and_the_same_number_of_choices_everywhere(tmp_path):
    assert choice_bias(write_and_load(tmp_path / "arc", {"a": 0.5}, "arc", {"easy": 30}, choices=(4, 5))) == []
    assert choice_bias(write_and_load(tmp_path / "mc2", {"a": 0.5}, "truthfulqa", {"mc2": 30})) == []
    assert len(choice_bias(write_and_load(tmp_path / "hellaswag", {"a": 0.5}, "hellaswag"))) == 1


def test_calibration_of_certain_wrong_and_undecided_runs():
    gold = [0, 1] * 10
    right, half, undecided = calibration(
        group_of_scores([certain(choice) for choice in gold], [certain(0)] * 20, [[-1.0] * 4] * 20, gold=gold)
    )
    assert (right.ece, right.confidence, right.accuracy) == pytest.approx((0, 1, 1), abs=1e-6)
    assert (half.ece, half.accuracy) == pytest.approx((0.5, 0.5), abs=1e-6)
    assert (undecided.ece, undecided.confidence, undecided.accuracy) == pytest.approx((0.25, 0.25, 0.5))
    (only,) = undecided.bins
    assert (only.low, only.high, only.n) == (0.2, 0.3, 20)
    (only,) = right.bins
    assert (only.low, only.high) == (0.9, 1.0)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_equals_a_loop_over_the_records(tmp_path, bins):
    group = write_and_load(tmp_path, {"a": 0.4, "b": 0.6}, choices=(3, 4, 5))
    for result in calibration(group, bins):
        answers = []
        for key in group.keys:
            record = group.runs[result.run].records[key]
            weights = [math.exp(score) for score in record["loglikelihoods"]]
            answers.append((max(weights) / sum(weights), record["correct"]))
        ece = 0.0
        for filled in result.bins:
            members = [
                answer for answer in answers if filled.low <= answer[0] < filled.high or answer[0] == filled.high == 1
            ]
            assert filled.n == len(members)
            assert filled.confidence == pytest.approx(sum(confidence for confidence, _ in members) / len(members))
            assert filled.accuracy == pytest.approx(sum(right for _, right in members) / len(members))
            ece += abs(filled.accuracy - filled.confidence) * len(members) / len(answers)
        assert sum(filled.n for filled in result.bins) == len(answers)
        assert result.ece == pytest.approx(ece)
        assert result.confidence == pytest.approx(sum(confidence for confidence, _ in answers) / len(answers))
