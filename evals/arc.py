"""python -m evals.arc: questions of school science, easy and challenge (Clark et al. 2018), by lm-eval's protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.harness.protocol import Asked, Protocol, main, metric_list, text, texts


def ask(_: str, doc: Mapping[str, Any]) -> Asked:
    """A question, and three to five answers; their labels are letters or numbers."""
    choices = texts(doc["choices"]["text"])
    gold = doc["choices"]["label"].index(doc["answerKey"])
    return Asked(f"Question: {text(doc['question'])}\nAnswer:", gold, choices[gold], choices, doc["question"])


PROTOCOL = Protocol(
    name="arc",
    subjects={"easy": "ARC-Easy", "challenge": "ARC-Challenge"},
    examples="train",
    columns="question, choices with text and label, and an answerKey among the labels",
    ask=ask,
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

if __name__ == "__main__":
    main(PROTOCOL)
