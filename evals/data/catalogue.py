"""The benchmarks and their default settings. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """Facts about a benchmark that are known before its data is read."""

    name: str  # of the program, evals.<name>, and of its run files
    title: str
    data: str  # data set on the hub
    shots: int  # default
    about: str
    split: str = "test"  # default
    pools: bool = True  # whether a mean over all subjects is meaningful
    letters: bool = False  # whether the prompt lists the choices under letters
    generates: bool = False  # whether the model generates an answer instead of scoring choices
    has_examples: bool = True  # whether prompts can contain solved examples (few-shot)


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("mmlu", "MMLU", "cais/mmlu", 5, "57 subjects, four choices under letters", letters=True),
        Benchmark("hellaswag", "HellaSwag", "Rowan/hellaswag", 0, "continue a scene, four endings", "validation"),
        Benchmark("arc", "ARC", "allenai/ai2_arc", 0, "school science, easy and challenge"),
        Benchmark(
            "truthfulqa",
            "TruthfulQA",
            "truthfulqa/truthful_qa",
            0,
            "questions about common misconceptions",
            "validation",
            pools=False,
            has_examples=False,
        ),
        Benchmark("gsm8k", "GSM8K", "openai/gsm8k", 5, "school mathematics, generated answers", generates=True),
        Benchmark(
            "squad",
            "SQuAD",
            "rajpurkar/squad",
            0,
            "questions about a paragraph, generated answers",
            "validation",
            generates=True,
        ),
    )
}


def default_split(task: str) -> str:
    """Return the split that a benchmark evaluates by default; `test` for an unknown benchmark."""
    return BENCHMARKS[task].split if task in BENCHMARKS else "test"


def run_stem(task: str, split: str, shots: int, chat: bool, single_turn: bool) -> str:
    """Return the start of a setting's file names, such as mmlu_5shot_chat. The default split is left out."""
    split_part = "" if split == default_split(task) else f"_{split}"
    return f"{task}{split_part}_{shots}shot" + (("_chat1" if single_turn else "_chat") if chat else "")


def full_name(task: str, subject: str) -> str:
    """Return lm-evaluation-harness's name of a subject, such as mmlu_anatomy. A sole subject has the task's name."""
    return task if subject == task else f"{task}_{subject}"
