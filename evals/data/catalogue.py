"""The benchmarks that there are. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """What is known of a benchmark before any of its rows is read."""

    name: str  # of its program, evals.<name>, and of its run files
    title: str
    data: str  # its data set on the hub
    shots: int  # by default
    about: str
    split: str = "test"  # that is usually asked
    pools: bool = True  # whether a mean over all its subjects says anything
    letters: bool = False  # whether the choices are shown, under letters
    writes: bool = False  # whether the model answers in its own words
    solved: bool = True  # whether solved examples can be shown


BENCHMARKS = {
    own.name: own
    for own in (
        Benchmark("mmlu", "MMLU", "cais/mmlu", 5, "57 subjects, four choices under letters", letters=True),
        Benchmark("hellaswag", "HellaSwag", "Rowan/hellaswag", 0, "how a scene goes on, four endings", "validation"),
        Benchmark("arc", "ARC", "allenai/ai2_arc", 0, "school science, easy and challenge"),
        Benchmark(
            "truthfulqa",
            "TruthfulQA",
            "truthfulqa/truthful_qa",
            0,
            "questions that people get wrong",
            "validation",
            pools=False,
            solved=False,
        ),
        Benchmark("gsm8k", "GSM8K", "openai/gsm8k", 5, "school mathematics, in the model's own words", writes=True),
        Benchmark(
            "squad", "SQuAD", "rajpurkar/squad", 0, "a paragraph, in the model's own words", "validation", writes=True
        ),
    )
}


def split_of(task: str) -> str:
    """The split that a benchmark usually asks."""
    return BENCHMARKS[task].split if task in BENCHMARKS else "test"


def stem(task: str, split: str, shots: int, chat: bool, single_turn: bool) -> str:
    """What the files of a setting begin with: mmlu_5shot_chat; the usual split is left out."""
    told = "" if split == split_of(task) else f"_{split}"
    return f"{task}{told}_{shots}shot" + (("_chat1" if single_turn else "_chat") if chat else "")


def full_name(task: str, subject: str) -> str:
    """What lm-evaluation-harness calls a subject: mmlu_anatomy; a benchmark's only one has the benchmark's name."""
    return task if subject == task else f"{task}_{subject}"
