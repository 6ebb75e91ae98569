"""Scores against the harness's own numbers, from the same fake log-likelihoods."""

from __future__ import annotations

import hashlib
import json
import math

import pytest

from evals.data import MMLU
from evals.prompts import mmlu_requests
from evals.scoring import accuracy, pooled_stderr, predict


def fake(context: str, continuation: str) -> float:
    """The log-likelihood that the golden run used instead of a model."""
    digest = hashlib.sha256(f"{context}\x00{continuation}".encode()).hexdigest()
    return -(1 + 9 * int(digest[:12], 16) / 2**48)


@pytest.mark.parametrize("shots", [0, 5])
def test_every_metric_equals_the_harness(shared, shots):
    golden = json.loads((shared / "data" / "lm_eval_golden" / "golden.json").read_text())["runs"][f"mmlu_{shots}shot"]
    data = MMLU(str(shared / "data" / "mmlu"))
    for task, metrics in golden["metrics"].items():
        subject = task.removeprefix("mmlu_")
        dev = data.questions(subject, "dev")[:shots]
        correct = [
            predict([fake(*request) for request in mmlu_requests(question, dev)]) == question.answer
            for question in data.questions(subject, "test")
        ]
        assert len(correct) == metrics["sample_len"]
        assert accuracy(correct) == pytest.approx((metrics["acc,none"], metrics["acc_stderr,none"]), abs=1e-12)


def test_the_first_choice_wins_a_tie():
    assert predict([-2.0, -1.0, -1.0, -3.0]) == 1


def test_one_question_has_no_standard_error():
    assert accuracy([True])[0] == 1.0
    assert math.isnan(accuracy([True])[1])
    assert math.isnan(pooled_stderr([math.nan], [1]))


def test_pooled_error_of_one_subject_is_its_own():
    _, stderr = accuracy([True, False, False, True, True])
    assert pooled_stderr([stderr], [5]) == pytest.approx(stderr)
