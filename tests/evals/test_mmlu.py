"""The program end to end, and its log-likelihoods against a plain transformers loop."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from engine import LLM
from evals.mmlu import load_tasks, loglikelihoods
from evals.prompts import mmlu_requests

STORIES = "llama-tinystories-656k"


@pytest.fixture(scope="module")
def reference(shared):  # type: ignore[no-untyped-def]
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        shared / "checkpoints" / STORIES, dtype=torch.float64, attn_implementation="eager"
    )


@pytest.mark.parametrize("shots", [0, 2])
def test_every_loglikelihood_equals_a_plain_transformers_loop(shared, reference, shots):
    """All ten subjects, twelve questions each; with shots most prompts outgrow the window of 512."""
    llm = LLM.load(shared / "checkpoints" / STORIES, device="cpu")
    truncated = 0
    for _, examples, questions in load_tasks(str(shared / "data" / "mmlu"), ["all"], shots, limit=12):
        for question in questions:
            ours = loglikelihoods(llm, question, examples)
            for (context, continuation), value in zip(mmlu_requests(question, examples), ours, strict=True):
                whole, start = llm.tokenizer.encode(context + continuation), len(llm.tokenizer.encode(context))
                target = whole[start:]
                truncated += len(whole) > 513
                ids = whole[-513:]
                with torch.no_grad():
                    logits = reference(torch.tensor([ids[:-1]])).logits[0, -len(target) :]
                expected = logits.log_softmax(-1).gather(1, torch.tensor(target)[:, None]).sum()
                assert value == pytest.approx(float(expected), abs=1e-4)
    assert truncated > 0  # law's long questions already are, without any shots


def program(shared, *more: str) -> subprocess.CompletedProcess[str]:  # type: ignore[no-untyped-def]
    words = ["-m", str(shared / "checkpoints" / STORIES), "--data", str(shared / "data" / "mmlu"), *more]
    return subprocess.run([sys.executable, "-m", "evals.mmlu", *words], capture_output=True, text=True, timeout=300)


def test_the_program_prints_accuracy_by_subject_and_overall(shared):
    done = program(shared, "--subjects", "anatomy", "econometrics", "--shots", "0", "--limit", "20", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    for expected in ("anatomy", "econometrics", "overall", " 40 ", "±", "CPU", "questions/s"):
        assert expected in done.stdout
    assert "mmlu: 40/40" in done.stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--shots", "9"), "--shots 9: the dev split of astronomy has 5 examples; use 0 to 5"),
        (("--shots", "-1"), "--shots -1"),
        (("--subjects", "astronmy"), "nearest: astronomy"),
    ],
)
def test_bad_questions_are_one_line_and_a_usage_error(shared, words, line):
    done = program(shared, *words)
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
