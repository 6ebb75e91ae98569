"""Synthetic run files of invented models, reproducible from a seed: for tests of comparison, plots and reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from evals.data.catalogue import BENCHMARKS
from evals.runs.collection import Group, Run, group_runs, load_runs
from evals.runs.run_file import REMOTE, sha256
from evals.runs.scoring import predict

HEADER = {
    "task": "mmlu",
    "shots": 5,
    "split": "test",
    "chat": False,
    "single_turn": False,
    "max_length": 512,
    "weights": "a" * 64,
    "config": "b",
    "tokenizer": "c",
    "data": "d",
    "batch_tokens": 1024,
    "seed": 0,
    "device": "cpu",
    "dtype": "float32",
    "quant": "none",
    "model": "here",
    "version": "1",
    "date": "today",
    "machine": "m",
}
SUBJECTS = {
    "mmlu": {"anatomy": 40, "astronomy": 30},
    "hellaswag": {"hellaswag": 50},
    "arc": {"easy": 40, "challenge": 30},
    "truthfulqa": {"mc1": 30, "mc2": 30},
    "gsm8k": {"gsm8k": 40},
    "squad": {"squad": 40},
}
METRICS = {
    "hellaswag": ("acc", "acc_norm"),
    "arc": ("acc", "acc_norm"),
    "gsm8k": ("exact_match,strict-match", "exact_match,flexible-extract"),
    "squad": ("exact", "f1"),
}
SERVER = "http://127.0.0.1:8000"
GENERATED = ("gsm8k", "squad")  # benchmarks with generated answers

AccuracyRate = float | Mapping[str, float]  # of all subjects, or by subject


def write_runs(
    folder: Path,
    models: Mapping[str, AccuracyRate],
    task: str = "mmlu",
    subjects: Mapping[str, int] | None = None,
    *,
    seed: int = 0,
    shared: float = 0.5,
    choices: int | tuple[int, ...] = 4,
    questions: bool = False,
    **header: Any,
) -> list[Path]:
    """Write a run file for each model to `folder`/<model>, where --output-dir would put it; return their paths.

    `models`: accuracy by model. `subjects`: number of questions by subject. `shared`: how much the difficulty of a
    question is common to all models; at 0 their mistakes are independent, at 1 a better model misses a subset of the
    questions that a worse one misses. `choices`: number of choices of every question, or numbers used in turn.
    `questions` also saves the texts of the questions. `header` replaces header fields, such as quant="int8",
    device="cuda" (adds GPU seconds), device="remote" (a run on a server), data or shots.
    """
    values = HEADER | {"task": task, "shots": BENCHMARKS[task].shots, "split": BENCHMARKS[task].split} | header
    is_remote = values["device"] == REMOTE
    if is_remote:
        local = ("weights", "config", "tokenizer", "batch_tokens", "machine")
        values = {name: value for name, value in values.items() if name not in local}
        values |= {"dtype": REMOTE, "quant": REMOTE, "url": [SERVER]}
    sizes = SUBJECTS[task] if subjects is None else subjects
    keys = [(subject, index) for subject, size in sizes.items() for index in range(size)]
    paths = []
    for model, rate in models.items():
        records = []
        for subject, index in keys:
            # Everything about a question comes from the first generator, so it is the same for every model.
            of_question, of_answer = (Random(f"{seed} {task} {who} {subject} {index}") for who in ("", model))
            common_difficulty, own_difficulty = of_question.random(), of_answer.random()
            difficulty = common_difficulty if of_answer.random() < shared else own_difficulty
            is_right = difficulty < (rate if isinstance(rate, float) else rate[subject])
            make_answer = _generated_answer if task in GENERATED else _choice_answer
            number = choices if isinstance(choices, int) else choices[index % len(choices)]
            records.append(
                {
                    "subject": subject,
                    "index": index,
                    "prompt_sha256": sha256(f"{subject} {index}"),
                    **make_answer(task, subject, of_question, of_answer, is_right, number),
                    "tokens": (tokens := of_question.randint(60, 600)),
                    "truncated": tokens > 590,
                    "times": _times(values["device"], task, tokens, of_answer),
                    **({"url": SERVER} if is_remote else {}),
                }
            )
        setting = REMOTE if is_remote else f"{values['device']}_{values['dtype']}_{values['quant']}"
        name = f"{task}_{values['shots']}shot_{setting}"
        path = folder / model.replace("/", "__") / f"{name}.run.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [{"format": 1, **values, "model": model}, *records]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        if questions:
            path.with_name(f"{name}_questions.json").write_text(json.dumps([_question(record) for record in records]))
        paths.append(path)
    return paths


def load_group(folder: Path, title: str = "") -> Group:
    """Load the run files of a folder and return their first group whose title contains `title`."""
    return next(group for group in group_runs(load_runs([str(folder)])) if title in group.title)


def write_and_load(folder: Path, *args: Any, **kwargs: Any) -> Group:
    """Write run files with `write_runs` and return their only group."""
    write_runs(folder, *args, **kwargs)
    (group,) = group_runs(load_runs([str(folder)]))
    return group


def group_of_answers(*answers: str, subjects: str = "") -> Group:
    """Return a group with generated answers.

    `answers`: a letter for each question, one string per run; + is right, - is wrong. `subjects`: a letter for each
    question.
    """
    names = subjects or "a" * len(answers[0])
    keys = [(subject, index) for index, subject in enumerate(names)]
    runs = []
    for number, letters in enumerate(answers):
        records = {
            key: {
                "correct": letter == "+",
                "prediction": "yes" if letter == "+" else "no",
                "response": "so",
                "gold": ["yes"],
            }
            for key, letter in zip(keys, letters, strict=True)
        }
        runs.append(Run(Path(str(number)), {}, records, str(number)))
    return Group("a title", "gsm8k", runs, sorted(keys))


def group_of_scores(*scores: list[list[float]], gold: Sequence[int | list[int]]) -> Group:
    """Return a group from log-likelihoods: `scores` is [question][choice] for each run, `gold` the correct choices."""
    runs = []
    for number, rows in enumerate(scores):
        records = {}
        for index, (row, correct) in enumerate(zip(rows, gold, strict=True)):
            prediction = max(range(len(row)), key=row.__getitem__)
            is_right = prediction == correct if isinstance(correct, int) else prediction in correct
            records["a", index] = {
                "loglikelihoods": row,
                "gold": correct,
                "prediction": prediction,
                "correct": is_right,
            }
        runs.append(Run(Path(str(number)), {}, records, str(number)))
    return Group("a title", "mmlu", runs, [("a", index) for index in range(len(gold))])


def certain(choice: int, choices: int = 4) -> list[float]:
    """Return log-likelihoods with nearly all probability on one choice."""
    return [0.0 if index == choice else -20.0 for index in range(choices)]


def _choice_answer(
    task: str, subject: str, of_question: Random, of_answer: Random, is_right: bool, choices: int
) -> dict[str, Any]:
    """Return the answer fields of a multiple-choice record."""
    has_two_right = subject == "mc2"
    gold = of_question.randrange(choices)
    correct = sorted({gold, (gold + 1) % choices}) if has_two_right and choices > 2 else [gold]
    tempting = of_question.choice([choice for choice in range(choices) if choice not in correct])
    scores = sorted((of_answer.gauss(-4.0, 1.5) for _ in range(choices)), reverse=True)
    wrong = [choice for choice in range(choices) if choice not in correct]
    chosen = gold if is_right else tempting if of_answer.random() < 0.4 else of_answer.choice(wrong)
    others = [choice for choice in range(choices) if choice != chosen]
    of_answer.shuffle(others)
    loglikelihoods = [score for _, score in sorted(zip([chosen, *others], scores, strict=True))]
    metrics = {name: float(is_right) for name in METRICS.get(task, ("acc",))}
    if "acc_norm" in metrics and of_answer.random() < 0.1:
        metrics["acc_norm"] = 1.0 - metrics["acc_norm"]
    assert predict(loglikelihoods) == chosen
    return {
        "gold": correct if has_two_right else gold,
        "prediction": chosen,
        "correct": chosen in correct,
        "loglikelihoods": loglikelihoods,
        "greedy": [choice == chosen and of_answer.random() < 0.5 for choice in range(choices)],
        "margin": scores[0] - scores[1],
        "metrics": metrics,
    }


def _generated_answer(
    task: str, subject: str, of_question: Random, of_answer: Random, is_right: bool, choices: int
) -> dict[str, Any]:
    """Return the answer fields of a record with a generated answer. A few answers are cut off."""
    gold = str(of_question.randint(2, 500))
    prediction = gold if is_right else str(of_answer.randint(501, 999))
    length = of_answer.randint(5, 200)
    first, second = METRICS[task]
    return {
        "gold": [gold, f"{gold}.0"],
        "prediction": prediction,
        "correct": is_right,
        "response": f"So it is {prediction}." if task == "gsm8k" else prediction,
        "finish_reason": "length" if length > 190 else "stop",
        "new_tokens": length,
        "metrics": {first: float(is_right), second: 1.0 if is_right else float(of_answer.random() < 0.1)},
    }


def _times(device: str, task: str, tokens: int, of_answer: Random) -> dict[str, float]:
    """Return costs: about half a millisecond per token on two cores, a tenth of that on CUDA."""
    real = round(tokens * (0.00005 if device == "cuda" else 0.0005) * of_answer.uniform(0.8, 1.3), 6)
    if device == REMOTE:
        return {"real": real}
    times = {"real": real, "cpu": round(1.9 * real, 6), "computed": 0.3 * tokens, "peak_memory": 1_500_000_000}
    if device == "cuda":
        times["gpu"] = round(0.9 * real, 6)
    else:
        times["cycles"] = round(5.2e9 * real)
    if task in GENERATED:
        times |= {"prefill": round(0.2 * real, 6), "decode": round(0.8 * real, 6)}
    return times


def _question(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question as --save-question-data saves it."""
    subject, index = record["subject"], record["index"]
    text = {"subject": subject, "index": index, "question": f"What is asked in {subject} as number {index}?"}
    if "loglikelihoods" in record:
        text["choices"] = [f"answer {choice} to {subject} {index}" for choice in range(len(record["loglikelihoods"]))]
    return text | {name: record[name] for name in ("prediction", "correct")}
