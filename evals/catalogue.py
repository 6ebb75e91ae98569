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
    pools: bool = True  # whether a mean over all its subjects says anything
    letters: bool = False  # whether the choices are shown, under letters
    writes: bool = False  # whether the model answers in its own words
    solved: bool = True  # whether solved examples can be shown


BENCHMARKS = {
    own.name: own
    for own in (
        Benchmark("mmlu", "MMLU", "cais/mmlu", 5, "57 subjects, four choices under letters", letters=True),
        Benchmark("hellaswag", "HellaSwag", "Rowan/hellaswag", 0, "how a scene goes on, four endings"),
        Benchmark("arc", "ARC", "allenai/ai2_arc", 0, "school science, easy and challenge"),
        Benchmark(
            "truthfulqa",
            "TruthfulQA",
            "truthfulqa/truthful_qa",
            0,
            "questions that people get wrong",
            pools=False,
            solved=False,
        ),
        Benchmark("gsm8k", "GSM8K", "openai/gsm8k", 5, "school mathematics, in the model's own words", writes=True),
        Benchmark("squad", "SQuAD", "rajpurkar/squad", 0, "a paragraph, in the model's own words", writes=True),
    )
}
