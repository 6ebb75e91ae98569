"""python -m evals.gsm8k: school mathematics, in the model's own words (Cobbe et al. 2021), by lm-eval's protocol.

Two readings of a response: strict-match, which decides, takes the number after "####", flexible-extract the last one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from evals.harness.protocol import Asked, Protocol, Row, main, metric_list, text
from evals.harness.task import Writing

UNTIL = ("Question:", "</s>", "<|im_end|>")
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
INVALID = "[invalid]"
IGNORED = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))


def ask(_: str, doc: Mapping[str, Any]) -> Asked:
    """A problem; examples show their whole solution."""
    answer = text(doc["answer"])
    return Asked(
        f"Question: {text(doc['question'])}\nAnswer:", [answer.split("#### ")[-1]], answer, shown=doc["question"]
    )


def strict(response: str) -> str:
    """The first number after ####."""
    found = STRICT.search(response)
    return found.group(1).strip() if found else INVALID


def flexible(response: str) -> str:
    """The last thing that looks like a number."""
    found = FLEXIBLE.findall(response)
    return next((part.strip() for part in found[-1] if part), INVALID) if found else INVALID


def is_same(answer: str, reference: str) -> bool:
    """Equal without commas, dollar signs, what stands before ####, a full stop at the end, and case."""
    for ignored in IGNORED:
        answer, reference = ignored.sub("", answer), ignored.sub("", reference)
    return answer.lower() == reference.lower()


def judge(row: Row, response: str) -> tuple[dict[str, str], dict[str, float]]:
    """Both readings of a response, and what they are worth."""
    return read(response, row.asked.target)


def read(response: str, solution: str) -> tuple[dict[str, str], dict[str, float]]:
    """Both readings of a response, and whether they are right."""
    answers = {"strict-match": strict(response), "flexible-extract": flexible(response)}
    return answers, {f"exact_match,{name}": float(is_same(own, solution)) for name, own in answers.items()}


GENERATION = {"until": list(UNTIL), "do_sample": False, "temperature": 0.0}

PROTOCOL = Protocol(
    name="gsm8k",
    subjects={"gsm8k": "main"},
    examples="train",
    columns="question and answer as text",
    ask=ask,
    writing=Writing(UNTIL, 256, GENERATION, judge),
    version=3.0,
    definition={
        "training_split": "train",
        "test_split": "test",
        "fewshot_split": "train",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": GENERATION,
        "metric_list": metric_list("exact_match"),
    },
)

if __name__ == "__main__":
    main(PROTOCOL)
