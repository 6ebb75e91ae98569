"""Scores against the harness's own numbers, from the same fake log-likelihoods."""

from __future__ import annotations

import math

import pytest

from evals.scoring import accuracy, pooled_stderr, predict
from evals.tables import summarize
from tests.evals import harness

HEADER = {"task": "mmlu", "model": "fake", "shots": 0, "split": "test", "chat": False, "single_turn": False,
          "device": "cpu", "dtype": "float32", "quant": "none"}  # fmt: skip


@pytest.mark.parametrize("run", harness.RUNS)
def test_every_metric_equals_the_harness(shared, run):
    expected = harness.run(shared, run)
    task = harness.task(shared, *harness.RUNS[run])
    records = []
    for rows in task.questions.values():
        for row in rows:
            item = task.item(row, harness.chatml if "chatml" in run else None)
            prediction = predict([harness.fake(*request) for request in item.requests])
            metrics = {"acc": float(prediction == item.gold)}
            plain = {"loglikelihoods": [], "margin": 1.0, "truncated": False, "tokens": 1, "times": {"peak_memory": 0}}
            records.append(
                {
                    "subject": item.subject,
                    "index": item.index,
                    "metrics": {"acc": float(prediction == item.gold)},
                    **plain,
                }
            )
    summary = summarize(HEADER, records, task.groups)
    assert len(summary.subjects) == 10
    for own in summary.subjects:
        metrics = expected["metrics"][f"mmlu_{own.name}"]
        assert own.questions == metrics["sample_len"]
        assert (own.mean, own.stderr) == pytest.approx((metrics["acc,none"], metrics["acc_stderr,none"]), abs=1e-12)
    if total := expected.get("weighted_over_these"):
        found = (summary.overall.mean, summary.overall.stderr, summary.overall.questions)
        assert found == pytest.approx((total["acc"], total["acc_stderr"], total["n"]), abs=1e-12)


def test_the_first_choice_wins_a_tie():
    assert predict([-2.0, -1.0, -1.0, -3.0]) == 1


def test_one_question_has_no_standard_error():
    assert accuracy([True])[0] == 1.0
    assert math.isnan(accuracy([True])[1])
    assert math.isnan(pooled_stderr([math.nan], [1]))


def test_pooled_error_of_one_subject_is_its_own():
    _, stderr = accuracy([True, False, False, True, True])
    assert pooled_stderr([stderr], [5]) == pytest.approx(stderr)
