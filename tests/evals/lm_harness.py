"""lm-evaluation-harness as a reference: its recorded results (golden), the flags that repeat them, and a live run."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from engine.cli import parser as cli
from evals import arc, gsm8k, hellaswag, mmlu, squad, truthfulqa
from evals.harness import protocol
from evals.harness.protocol import Protocol
from evals.harness.task import Task

MMLU, HELLASWAG, ARC, TRUTHFULQA, GSM8K = "mmlu", "hellaswag", "arc", "truthfulqa", "gsm8k"
# The recorded runs: our program and flags that repeat each.
RUNS: dict[str, tuple[str, list[str]]] = {
    "mmlu_0shot": (MMLU, ["--shots", "0"]),
    "mmlu_5shot": (MMLU, []),
    "mmlu_5shot_chatml_multiturn": (MMLU, ["--chat-template"]),
    "mmlu_5shot_chatml_singleturn": (MMLU, ["--chat-template", "--single-turn"]),
    "mmlu_0shot_chatml": (MMLU, ["--shots", "0", "--chat-template"]),
    "hellaswag_0shot_exact_rows": (HELLASWAG, ["--exact-rows"]),
    "arc_0shot": (ARC, []),
    "arc_challenge_25shot": (ARC, ["--subset", "challenge", "--shots", "25"]),
    "truthfulqa": (TRUTHFULQA, []),
    "gsm8k_5shot": (GSM8K, []),
}
PROTOCOLS: dict[str, Protocol] = {
    module.PROTOCOL.name: module.PROTOCOL for module in (arc, gsm8k, hellaswag, squad, truthfulqa)
}


def golden(shared: Path, name: str) -> dict[str, Any]:
    """Return the hashes and metrics of a recorded run."""
    return json.loads((shared / "data" / "lm_eval_golden" / "golden.json").read_text())["runs"][name]


def task(shared: Path, name: str) -> Task:
    """Return our task for a recorded run."""
    program, flags = RUNS[name]
    return load(shared, program, *flags)


def load(shared: Path, program: str, *flags: str) -> Task:
    """Return the task for these flags of a program, with all subjects unless the flags name some."""
    arguments = ["--data", str(shared / "data" / program), *flags]
    if program == MMLU:
        return mmlu.load_task(mmlu.parser().parse_args(["--subjects", "all", *arguments]))
    return protocol.load_task(PROTOCOLS[program], protocol.make_parser(PROTOCOLS[program]).parse_args(arguments))


def run_mmlu(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run evals.mmlu in this process, which saves the imports. Ctrl-C and all errors are caught as in a program."""
    stdout, stderr = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            cli.run(mmlu.parser(), mmlu.main, arguments)
        except SystemExit as error:
            status = int(str(error.code))
    return subprocess.CompletedProcess(list(arguments), status, stdout.getvalue(), stderr.getvalue())


def chatml(messages: Sequence[Mapping[str, str]]) -> str:
    """Render the chat template of the recorded runs."""
    turns = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
    return f"{turns}<|im_start|>assistant\n"


def fake_loglikelihood(context: str, continuation: str) -> float:
    """Return the log-likelihood that the recorded runs used instead of a model's."""
    return -(1 + 9 * hash_to_unit(f"{context}\x00{continuation}"))


def fake_response(context: str, solution: str) -> str:
    """Return the response that the recorded runs used for GSM8K: correct, or wrong in one of seven ways."""
    steps, answer = solution.split("#### ")
    return [
        f" {solution}",
        f" {steps}The answer is {answer}.",
        f" {steps}#### ${answer}",
        f" {steps}#### {answer}.00",
        f" I think 12 or {answer}",
        " no number here",
        f" #### {answer}\n\nSo it is 7.",
        f" {steps}#### -{answer}",
    ][int(8 * hash_to_unit(context))]


def hash_to_unit(text: str) -> float:
    """Map a text to a number from 0 to 1 by its hash."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 2**48


def load_model(model: Any, tokenizer: Any = None) -> Any:
    """Return lm-evaluation-harness's own `hf` model, float32 on the CPU, of a folder or of transformers' objects."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(model, tokenizer=tokenizer, dtype="float32", batch_size=1, device="cpu")


def evaluate(
    model: Any, shared: Path, folder: Path, subjects: Sequence[str], shots: int, limit: int, **chat: bool
) -> Any:
    """Run the harness on MMLU. Return its samples by subject: questions with requests and four log-likelihoods.

    Task definitions are written to `folder`.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    for subject in subjects:
        files = shared / "data" / "mmlu" / "parquet" / subject
        definition = {
            "task": f"ours_{subject}",
            "dataset_path": "parquet",
            "dataset_kwargs": {
                "data_files": {split: str(next(files.glob(f"{split}-*"))) for split in ("dev", "validation", "test")}
            },
            "test_split": "test",
            "fewshot_split": "dev",
            "fewshot_config": {"sampler": "first_n"},
            "output_type": "multiple_choice",
            "doc_to_text": (
                "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\n"
                "C. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"
            ),
            "doc_to_choice": ["A", "B", "C", "D"],
            "doc_to_target": "answer",
            "description": (
                f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
            ),
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        (folder / f"ours_{subject}.yaml").write_text(json.dumps(definition))  # JSON is YAML
    with mock.patch("lm_eval.evaluator.add_env_info"):  # which runs `pip list`
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=[f"ours_{subject}" for subject in subjects],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            num_fewshot=shots,
            limit=limit,
            bootstrap_iters=0,
            **chat,
        )
    return {subject: results["samples"][f"ours_{subject}"] for subject in subjects}


def check_records(records: Mapping[Any, Mapping[str, Any]], expected: Mapping[str, Any]) -> None:
    """Fail unless our records of a run equal the samples that `evaluate` returned, with log-likelihoods within 1e-4."""
    for subject, samples in expected.items():
        for sample in samples:
            record = records[subject, sample["doc_id"]]
            theirs = [float(response[0][0]) for response in sample["resps"]]
            assert record["loglikelihoods"] == pytest.approx(theirs, abs=1e-4)
            assert record["greedy"] == [bool(response[0][1]) for response in sample["resps"]]
            assert record["prompt_sha256"] == sample["prompt_hash"]
            assert record["correct"] == bool(sample["acc"])
