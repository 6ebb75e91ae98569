"""The program end to end, and its log-likelihoods against a plain transformers loop."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from engine import LLM
from evals.mmlu import encode_requests, load_tasks
from evals.prompts import mmlu_requests

STORIES = "llama-tinystories-656k"


@pytest.fixture(scope="module")
def reference(shared):  # type: ignore[no-untyped-def]
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(shared / "checkpoints" / STORIES, dtype=torch.float32)


@pytest.mark.parametrize(("shots", "limit"), [(0, None), (3, 6)])
def test_every_loglikelihood_equals_a_plain_transformers_loop(shared, reference, shots, limit):
    """All 2,643 questions. With shots most prompts outgrow the window of 512."""
    llm = LLM.load(shared / "checkpoints" / STORIES, device="cpu")
    truncated = 0
    for _, examples, questions in load_tasks(str(shared / "data" / "mmlu"), ["all"], shots, limit):
        for question in questions:
            passes: dict[tuple[int, ...], torch.Tensor] = {}  # the letters mostly follow the same tokens: one pass
            expected = []
            for context, continuation in mmlu_requests(question, examples):
                start = llm.tokenizer.encode(context)
                cut = llm.tokenizer.encode(context + continuation)[len(start) :]
                truncated += len(start + cut) > 513
                fed, target = tuple((start + cut)[-513:-1]), torch.tensor(cut)
                if fed not in passes:
                    with torch.no_grad():
                        passes[fed] = (
                            reference(torch.tensor([fed]), logits_to_keep=4).logits[0].double().log_softmax(-1)
                        )
                expected.append(float(passes[fed][-len(target) :].gather(1, target[:, None]).sum()))
            ours = [score.loglikelihood for score in llm.score(encode_requests(llm, question, examples))]
            assert ours == pytest.approx(expected, abs=1e-4)
    assert truncated > 0


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
