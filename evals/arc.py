"""python -m evals.arc: school science, easy and challenge (Clark et al. 2018), by lm-evaluation-harness's protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.cli.parser import run
from evals.harness.protocol import Protocol, Question, metric_list, program, text, texts


def parse(_: str, doc: Mapping[str, Any]) -> Question:
    """Return a question with three to five choices, whose labels are letters or numbers."""
    choices = texts(doc["choices"]["text"])
    gold = doc["choices"]["label"].index(doc["answerKey"])
    return Question(f"Question: {text(doc['question'])}\nAnswer:", gold, choices[gold], choices, doc["question"])


PROTOCOL = Protocol(
    name="arc",
    subjects={"easy": "ARC-Easy", "challenge": "ARC-Challenge"},
    example_split="train",
    columns="question, choices with text and label, and an answerKey among the labels",
    parse=parse,
    version=1.0,
    definition={
        "training_split": "train",
        "validation_split": "validation",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{choices.label.index(answerKey)}}",
        "doc_to_choice": "{{choices.text}}",
        "metric_list": metric_list("acc", "acc_norm"),
    },
)

parser, load_tasks, main = program(PROTOCOL)

if __name__ == "__main__":
    run(parser(), main)
