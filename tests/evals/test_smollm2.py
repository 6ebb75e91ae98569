"""MMLU with a real model, SmolLM2, by lm-evaluation-harness and here. bench/test_evals.py compares whole subjects."""

from __future__ import annotations

from evals.runs.run_file import read
from tests.evals import lm_harness

SUBJECTS = ["astronomy"]
QUESTIONS = 1  # of each subject


def test_5_shot_records_equal_those_of_the_harness(shared, smollm2, smollm2_reference, tmp_path):
    harness_model = lm_harness.load_model(smollm2_reference.model, smollm2_reference.tokenizer)
    expected = lm_harness.evaluate(harness_model, shared, tmp_path, SUBJECTS, 5, QUESTIONS)
    process = lm_harness.run_mmlu(
        ["-m", smollm2, "--data", str(shared / "data" / "mmlu"), "--subjects", *SUBJECTS, "--limit", str(QUESTIONS),
         "--device", "cpu", "--dtype", "float32", "--quant", "none", "--output-dir", str(tmp_path / "results")]
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    records = read(next((tmp_path / "results").rglob("*.run.jsonl")))[1]
    assert len(records) == QUESTIONS * len(SUBJECTS)
    lm_harness.check_records(records, expected)
