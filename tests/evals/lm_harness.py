"""lm-evaluation-harness: what it made of the real questions, by the flags that repeat it; and itself, run here."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.cli import parser as cli
from evals import arc, gsm8k, hellaswag, squad, truthfulqa
from evals.harness import protocol
from evals.harness.program import run_program
from evals.harness.protocol import Protocol
from evals.harness.task import Task
from evals.mmlu import load_task, parser

MMLU, HELLASWAG, ARC, TRUTHFULQA, GSM8K = "mmlu", "hellaswag", "arc", "truthfulqa", "gsm8k"
# Each run of its, and the program and flags that repeat it.
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


def run(shared: Path, name: str) -> dict[str, Any]:
    """Hashes and metrics of one run."""
    return json.loads((shared / "data" / "lm_eval_golden" / "golden.json").read_text())["runs"][name]


def task(shared: Path, name: str) -> Task:
    """The task of one run."""
    program, flags = RUNS[name]
    return load(shared, program, *flags)


def load(shared: Path, program: str, *flags: str) -> Task:
    """The task that these flags of a program make, all subjects unless they say otherwise."""
    words = ["--data", str(shared / "data" / program), *flags]
    if program == MMLU:
        return load_task(parser().parse_args(["--subjects", "all", *words]))
    return protocol.load_task(PROTOCOLS[program], protocol.parser(PROTOCOLS[program]).parse_args(words))


def mmlu(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The whole program in this process, which saves the imports."""
    told, errors = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(errors):
        try:
            cli.run(parser(), lambda options: run_program(options, load_task, MMLU), words)
        except SystemExit as ended:
            status = int(str(ended.code))
    return subprocess.CompletedProcess(list(words), status, told.getvalue(), errors.getvalue())


def chatml(messages: Sequence[Mapping[str, str]]) -> str:
    """The template of those runs."""
    turns = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
    return f"{turns}<|im_start|>assistant\n"


def fake(context: str, continuation: str) -> float:
    """The log-likelihood that those runs used instead of a model."""
    return -(1 + 9 * draw(f"{context}\x00{continuation}"))


def fake_response(context: str, solution: str) -> str:
    """What those runs were given as a solution of GSM8K's: right, or wrong in one of seven ways."""
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
    ][int(8 * draw(context))]


def draw(text: str) -> float:
    """A number from 0 to 1 by a text's hash."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 2**48


def evaluate(shared: Path, folder: Path, subjects: Sequence[str], shots: int, limit: int, **chat: bool) -> Any:
    """Its samples by subject: each question with its requests and four log-likelihoods, float32, on the CPU."""
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
    done = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder / "model"), "dtype": "float32"},
        tasks=[f"ours_{subject}" for subject in subjects],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        num_fewshot=shots,
        batch_size=1,
        device="cpu",
        limit=limit,
        bootstrap_iters=0,
        **chat,
    )
    return {subject: done["samples"][f"ours_{subject}"] for subject in subjects}
