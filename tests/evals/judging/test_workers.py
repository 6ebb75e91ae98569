"""Answers of workers are those of one process."""

from __future__ import annotations

import pytest

from evals import mt_bench
from evals.runs.judged import read_answers
from tests.evals.harness.workers.fake_ray import FakeRay, at_random
from tests.evals.question_set import write_question_set

pytestmark = pytest.mark.usefixtures("restored")


def test_workers_answer_as_one_process_does_although_they_end_at_random(tmp_path, monkeypatch):
    ray = FakeRay(at_random(2, 0.2)).install(monkeypatch)
    data = write_question_set(tmp_path / "data")
    answers = {}
    for name, more in (("alone", ()), ("workers", ("--workers", "2"))):
        flags = ["--data", str(data), "--output-dir", str(tmp_path / name), "--max-new-tokens", "12", *more]
        mt_bench.main(mt_bench.parser().parse_args(["-m", "demo", "--device", "cpu", *flags]))
        rows = read_answers(tmp_path / name / "model_answer" / "demo.jsonl")
        answers[name] = {question: (answer.choices, answer.usage) for question, answer in rows.items()}
    assert answers["workers"] == answers["alone"]
    assert len(ray.actors) >= 2
