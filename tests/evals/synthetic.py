"""Run files of models that are not there, drawn from a seed: for tests of what compares, draws and reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from evals.data.catalogue import BENCHMARKS
from evals.runs.run_file import sha256
from evals.runs.scoring import predict
from tests.evals.runs.test_run_file import HEADER

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
WRITTEN = ("gsm8k", "squad")  # answered in the model's own words

Rate = float | Mapping[str, float]  # of right answers: everywhere, or by subject


def make(
    folder: Path,
    models: Mapping[str, Rate],
    task: str = "mmlu",
    subjects: Mapping[str, int] | None = None,
    *,
    seed: int = 0,
    shared: float = 0.5,
    choices: int | tuple[int, ...] = 4,
    questions: bool = False,
    **header: Any,
) -> list[Path]:
    """A run file for each model under `folder`/<model>, where --output-dir would have it; -> their paths.

    `shared` is how much of what decides whether an answer is right is the question's own: at 0 the models' mistakes
    are independent, at 1 a better model misses a part of what a worse one does. Every question has so many `choices`,
    or they have these numbers of them in turn. `questions` saves the texts beside the run files. `header` replaces
    fields, such as quant="int8", device="cuda" (which measures GPU seconds), data or shots.
    """
    own = HEADER | {"task": task, "shots": BENCHMARKS[task].shots, "split": BENCHMARKS[task].split} | header
    sizes = SUBJECTS[task] if subjects is None else subjects
    keys = [(subject, index) for subject, size in sizes.items() for index in range(size)]
    paths = []
    for model, rate in models.items():
        records = []
        for subject, index in keys:
            asked, answered = (Random(f"{seed} {task} {who} {subject} {index}") for who in ("", model))
            common, own_fate = asked.random(), answered.random()  # all that is asked is drawn for every model alike
            fate = common if answered.random() < shared else own_fate
            right = fate < (rate if isinstance(rate, float) else rate[subject])
            answer = _words if task in WRITTEN else _choice
            offered = choices if isinstance(choices, int) else choices[index % len(choices)]
            records.append(
                {
                    "subject": subject,
                    "index": index,
                    "prompt_sha256": sha256(f"{subject} {index}"),
                    **answer(task, subject, asked, answered, right, offered),
                    "tokens": (tokens := asked.randint(60, 600)),
                    "truncated": tokens > 590,
                    "times": _times(own["device"], task, tokens, answered),
                }
            )
        name = f"{task}_{own['shots']}shot_{own['device']}_{own['dtype']}_{own['quant']}"
        path = folder / model.replace("/", "__") / f"{name}.run.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [{"format": 1, **own, "model": model}, *records]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        if questions:
            path.with_name(f"{name}_questions.json").write_text(json.dumps([_text(record) for record in records]))
        paths.append(path)
    return paths


def _choice(task: str, subject: str, asked: Random, answered: Random, right: bool, choices: int) -> dict[str, Any]:
    """An answer by its choice: the right one's place is the question's, the log-likelihoods are the model's."""
    several = subject == "mc2"
    gold = asked.randrange(choices)
    places = sorted({gold, (gold + 1) % choices}) if several and choices > 2 else [gold]
    tempting = asked.choice([place for place in range(choices) if place not in places])
    scores = sorted((answered.gauss(-4.0, 1.5) for _ in range(choices)), reverse=True)
    wrong = [place for place in range(choices) if place not in places]
    chosen = gold if right else tempting if answered.random() < 0.4 else answered.choice(wrong)
    others = [place for place in range(choices) if place != chosen]
    answered.shuffle(others)
    loglikelihoods = [score for _, score in sorted(zip([chosen, *others], scores, strict=True))]
    metrics = {name: float(right) for name in METRICS.get(task, ("acc",))}
    if "acc_norm" in metrics and answered.random() < 0.1:
        metrics["acc_norm"] = 1.0 - metrics["acc_norm"]
    assert predict(loglikelihoods) == chosen
    return {
        "gold": places if several else gold,
        "prediction": chosen,
        "correct": chosen in places,
        "loglikelihoods": loglikelihoods,
        "greedy": [place == chosen and answered.random() < 0.5 for place in range(choices)],
        "margin": scores[0] - scores[1],
        "metrics": metrics,
    }


def _words(task: str, subject: str, asked: Random, answered: Random, right: bool, choices: int) -> dict[str, Any]:
    """An answer in the model's own words, now and then one without an end."""
    gold = str(asked.randint(2, 500))
    prediction = gold if right else str(answered.randint(501, 999))
    length = answered.randint(5, 200)
    first, second = METRICS[task]
    return {
        "gold": [gold, f"{gold}.0"],
        "prediction": prediction,
        "correct": right,
        "response": f"So it is {prediction}." if task == "gsm8k" else prediction,
        "finish_reason": "length" if length > 190 else "stop",
        "new_tokens": length,
        "metrics": {first: float(right), second: 1.0 if right else float(answered.random() < 0.1)},
    }


def _times(device: str, task: str, tokens: int, answered: Random) -> dict[str, float]:
    """Half a millisecond a token, on two cores; on CUDA a tenth of that."""
    real = round(tokens * (0.00005 if device == "cuda" else 0.0005) * answered.uniform(0.8, 1.3), 6)
    times = {"real": real, "cpu": round(1.9 * real, 6), "computed": 0.3 * tokens, "peak_memory": 1_500_000_000}
    if device == "cuda":
        times["gpu"] = round(0.9 * real, 6)
    else:
        times["cycles"] = round(5.2e9 * real)
    if task in WRITTEN:
        times |= {"prefill": round(0.2 * real, 6), "decode": round(0.8 * real, 6)}
    return times


def _text(record: Mapping[str, Any]) -> dict[str, Any]:
    """The text of a question as --save-question-data keeps it."""
    subject, index = record["subject"], record["index"]
    told = {"subject": subject, "index": index, "question": f"What is asked in {subject} as number {index}?"}
    if "loglikelihoods" in record:
        told["choices"] = [f"answer {place} to {subject} {index}" for place in range(len(record["loglikelihoods"]))]
    return told | {name: record[name] for name in ("prediction", "correct")}
