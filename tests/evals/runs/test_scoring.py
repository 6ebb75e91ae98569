"""Metrics and accuracies against lm-evaluation-harness's, computed from the same fake log-likelihoods."""

from __future__ import annotations

import json
import math

import pytest

from evals import gsm8k, squad
from evals.runs.scoring import accuracy, pooled_stderr, predict, predict_normalized
from evals.runs.summary import summarize
from tests.evals import lm_harness

HEADER = {"task": "mmlu", "model": "fake", "shots": 0, "split": "test", "chat": False, "single_turn": False,
          "device": "cpu", "dtype": "float32", "quant": "none"}  # fmt: skip
PLAIN = {"loglikelihoods": [], "margin": 1.0, "truncated": False, "tokens": 1, "times": {"peak_memory": 0}}


@pytest.mark.parametrize("run", lm_harness.RUNS)
def test_every_metric_equals_the_harness(shared, run):
    expected = lm_harness.golden(shared, run)
    task = lm_harness.task(shared, run)
    records = []
    for rows in task.questions.values():
        for row in rows:
            item = task.make_item(row, lm_harness.chatml if "chatml" in run else None)
            if task.generation is None:
                loglikelihoods = [lm_harness.fake_loglikelihood(*request) for request in item.requests]
                metrics = task.choice_metrics(row, loglikelihoods)
            else:
                response = lm_harness.fake_response(item.requests[0][0], row.question.target)
                metrics = task.generation.judge(row, response)[1]
            records.append({"subject": item.subject, "index": item.index, "metrics": metrics, **PLAIN})
    summary = summarize(HEADER | {"task": task.name}, records, task.groups)
    assert {task.full_name(subject.name) for subject in summary.subjects} <= set(expected["metrics"])
    for row in summary.metrics:
        metric, _, filter_name = row.metric.partition(",")
        for subject in row.subjects:
            metrics = expected["metrics"][task.full_name(subject.name)]
            theirs = [metrics[f"{key},{filter_name or 'none'}"] for key in (metric, f"{metric}_stderr")]
            assert subject.questions == metrics["sample_len"]
            assert [subject.mean, subject.stderr] == pytest.approx(theirs, abs=1e-12)
    if total := expected.get("weighted_over_these"):
        found = (summary.overall.mean, summary.overall.stderr, summary.overall.questions)
        assert found == pytest.approx((total["acc"], total["acc_stderr"], total["n"]), abs=1e-12)


def test_answers_are_extracted_from_gsm8k_responses_as_the_harness_does(shared):
    lines = (shared / "data" / "lm_eval_golden" / "gsm8k_filters.jsonl").read_text().splitlines()
    assert len(lines) == 400
    for line in map(json.loads, lines):
        answers, metrics = gsm8k.judge_response(line["response"], line["gold"])
        for name in ("strict-match", "flexible-extract"):
            assert [answers[name], metrics[f"exact_match,{name}"]] == line[name]


@pytest.mark.parametrize(
    ("response", "answers", "expected"),
    [
        (" the Denver Broncos.", ["Denver Broncos"], (1, 1, 1)),
        ("It was Denver Broncos of 1999", ["Denver Broncos", "Broncos"], (1, 0, 4 / 8)),
        ("Panthers", ["Denver Broncos"], (0, 0, 0)),
        ("fifty", ["50", "Fifty"], (1, 1, 1)),
        ("150", ["50"], (0, 0, 0)),
        ("", ["the"], (0, 1, 0)),
        ("", ["x"], (0, 0, 0)),
    ],
)
def test_squad_scores_follow_the_official_normalisation(response, answers, expected):
    assert tuple(squad.measures(response, answers).values()) == pytest.approx(expected)


def test_an_empty_choice_never_wins_per_character():
    assert predict_normalized([-1.0, -9.0], ["", "nine"]) == 1


def test_the_first_choice_wins_a_tie():
    assert predict([-2.0, -1.0, -1.0, -3.0]) == 1


def test_one_question_has_no_standard_error():
    assert accuracy([True])[0] == 1.0
    assert math.isnan(accuracy([True])[1])
    assert math.isnan(pooled_stderr([math.nan], [1]))


def test_pooled_error_of_one_subject_is_its_own():
    _, stderr = accuracy([True, False, False, True, True])
    assert pooled_stderr([stderr], [5]) == pytest.approx(stderr)
