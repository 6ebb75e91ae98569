"""lm-evaluation-harness: what it made of the real questions, by the flags that repeat it; and itself, run here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.mmlu import load_task, parser
from evals.task import Task

RUNS = {
    "mmlu_0shot": ["--shots", "0"],
    "mmlu_5shot": [],
    "mmlu_5shot_chatml_multiturn": ["--chat-template"],
    "mmlu_5shot_chatml_singleturn": ["--chat-template", "--single-turn"],
    "mmlu_0shot_chatml": ["--shots", "0", "--chat-template"],
}


def run(shared: Path, name: str) -> dict[str, Any]:
    """Hashes and metrics of one run."""
    return json.loads((shared / "data" / "lm_eval_golden" / "golden.json").read_text())["runs"][name]


def task(shared: Path, *flags: str) -> Task:
    """The task that these flags of the program make, all subjects unless they say otherwise."""
    words = ["--data", str(shared / "data" / "mmlu"), "--subjects", "all", *flags]
    return load_task(parser().parse_args(words))


def chatml(messages: Sequence[Mapping[str, str]]) -> str:
    """The template of those runs."""
    turns = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
    return f"{turns}<|im_start|>assistant\n"


def fake(context: str, continuation: str) -> float:
    """The log-likelihood that those runs used instead of a model."""
    digest = hashlib.sha256(f"{context}\x00{continuation}".encode()).hexdigest()
    return -(1 + 9 * int(digest[:12], 16) / 2**48)


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
