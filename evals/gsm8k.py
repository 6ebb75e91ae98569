"""python -m evals.gsm8k: school mathematics, generated answers (Cobbe et al. 2021).

By lm-evaluation-harness's protocol, with its two filters: strict-match, which decides, extracts the number after
"####"; flexible-extract extracts the last number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine.cli.parser import run
from evals.harness.protocol import Protocol, Question, Row, metric_list, program, text
from evals.harness.task import Generation

UNTIL = ("Question:", "</s>", "<|im_end|>")
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
INVALID = "[invalid]"
IGNORED = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))


def parse(_: str, doc: Mapping[str, Any]) -> Question:
    """Return a problem. Solved examples show the whole solution."""
    solution = text(doc["answer"])
    prompt = f"Question: {text(doc['question'])}\nAnswer:"
    return Question(prompt, [solution.split("#### ")[-1]], solution, display=doc["question"])


def strict_match(response: str) -> str:
    """Return the first number after ####."""
    match = STRICT.search(response)
    return match.group(1).strip() if match else INVALID


def flexible_extract(response: str) -> str:
    """Return the last number."""
    matches = FLEXIBLE.findall(response)
    return next((part.strip() for part in matches[-1] if part), INVALID) if matches else INVALID


def is_same(answer: str, reference: str) -> bool:
    """Compare answers, ignoring commas, dollar signs, everything before ####, a final full stop, and case."""
    for pattern in IGNORED:
        answer, reference = pattern.sub("", answer), pattern.sub("", reference)
    return answer.lower() == reference.lower()


def judge(row: Row, response: str) -> tuple[dict[str, str], dict[str, float]]:
    """Return the extracted answer and the metric of each filter."""
    return judge_response(response, row.question.target)


def judge_response(response: str, solution: str) -> tuple[dict[str, str], dict[str, float]]:
    """Return the extracted answer of each filter, and whether it equals the solution."""
    answers = {"strict-match": strict_match(response), "flexible-extract": flexible_extract(response)}
    return answers, {f"exact_match,{name}": float(is_same(answer, solution)) for name, answer in answers.items()}


SETTINGS = {"until": list(UNTIL), "do_sample": False, "temperature": 0.0}

PROTOCOL = Protocol(
    name="gsm8k",
    subjects={"gsm8k": "main"},
    example_split="train",
    columns="question and answer as text",
    parse=parse,
    generation=Generation(UNTIL, 256, SETTINGS, judge),
    version=3.0,
    definition={
        "training_split": "train",
        "test_split": "test",
        "fewshot_split": "train",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": SETTINGS,
        "metric_list": metric_list("exact_match"),
    },
)

parser, load_tasks, main = program(PROTOCOL)

if __name__ == "__main__":
    run(parser(), main)
