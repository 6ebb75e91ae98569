"""python -m evals.hellaswag: continue a scene (Zellers et al. 2019), by lm-evaluation-harness's protocol."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine.cli.parser import run
from evals.harness.protocol import Protocol, Question, metric_list, program, text, texts

ENDINGS = 4
BRACKETS = re.compile(r"\[.*?\]")  # markup of the rows from WikiHow


def clean(text: str) -> str:
    """Return the text without markup."""
    return BRACKETS.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def parse(_: str, doc: Mapping[str, Any]) -> Question:
    """Return a scene with four endings."""
    query = clean(f"{text(doc['activity_label'])}: {text(doc['ctx_a'])} {text(doc['ctx_b']).capitalize()}")
    choices, gold = [clean(ending) for ending in texts(doc["endings"])], int(doc["label"])
    if len(choices) != ENDINGS:
        raise ValueError("not four endings")
    return Question(query, gold, choices[gold], choices, columns={"query": query, "choices": choices, "gold": gold})


PROTOCOL = Protocol(
    name="hellaswag",
    subjects={"hellaswag": None},
    example_split="train",
    columns="activity_label, ctx_a, ctx_b, four endings and a label from 0 to 3",
    parse=parse,
    mark="exact",
    version=1.0,
    definition={
        "validation_split": "validation",
        "training_split": "train",
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{label}}",
        "doc_to_choice": "choices",
        "metric_list": metric_list("acc", "acc_norm"),
    },
)

parser, load_tasks, main = program(PROTOCOL)

if __name__ == "__main__":
    run(parser(), main)
