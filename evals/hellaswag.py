"""python -m evals.hellaswag: how does the scene go on? (Zellers et al. 2019), by lm-eval's protocol."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from evals.harness.protocol import Asked, Protocol, main, metric_list, text, texts

ENDINGS = 4
BRACKETS = re.compile(r"\[.*?\]")  # marks of the WikiHow part


def cleaned(text: str) -> str:
    """Without the marks."""
    return BRACKETS.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def ask(_: str, doc: Mapping[str, Any]) -> Asked:
    """A scene, and four ways for it to go on."""
    query = cleaned(f"{text(doc['activity_label'])}: {text(doc['ctx_a'])} {text(doc['ctx_b']).capitalize()}")
    choices, gold = [cleaned(ending) for ending in texts(doc["endings"])], int(doc["label"])
    if len(choices) != ENDINGS:
        raise ValueError("not four endings")
    return Asked(query, gold, choices[gold], choices, more={"query": query, "choices": choices, "gold": gold})


PROTOCOL = Protocol(
    name="hellaswag",
    subjects={"hellaswag": None},
    examples="train",
    columns="activity_label, ctx_a, ctx_b, four endings and a label from 0 to 3",
    ask=ask,
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

if __name__ == "__main__":
    main(PROTOCOL)
