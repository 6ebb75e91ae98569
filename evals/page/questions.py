"""A group of runs -> what a report's page shows of each question, as JSON inside the page. No model, no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from evals.runs.collection import Group, Run
from evals.runs.run_file import Key, right_choices

DIGITS = 3  # of log-likelihoods, which keeps 14,042 questions in a few megabytes
Texts = Sequence[Mapping[str, Any]]


def questions(group: Group) -> dict[str, Any]:
    """Every question that all runs answered, in columns: what it is, and what each model made of it.

    `question`, `choices`, `solution` and `context` (a place in `contexts`, each of which is there once) are None where
    no text is.
    """
    subjects = group.subjects
    place = {name: number for number, name in enumerate(subjects)}
    golds = [group.runs[0].records[key]["gold"] for key in group.keys]
    texts = [group.texts.get(key, {}) for key in group.keys]
    metrics = _metrics(group)
    return {
        "models": [run.label for run in group.runs],
        "subjects": subjects,
        "subject": [place[subject] for subject, _ in group.keys],
        "index": [index for _, index in group.keys],
        "gold": [right_choices({"gold": gold}) for gold in golds],
        **_told(group, texts),
        "runs": [_answers(run, group, metrics) for run in group.runs],
    }


def embedded(data: Any) -> str:
    """JSON that can stand inside a <script> element: no text in it can end the element or begin a comment."""
    told = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return told.replace("<", "\\u003c")  # which stands in strings alone


@dataclass(frozen=True)
class Control:
    """A choice by which the browser's questions are selected or sorted; the first option selects nothing."""

    name: str
    label: str
    options: Sequence[tuple[str, str]]


def by_model(group: Group) -> list[Control]:
    """Whether each model's answer is to be right or wrong; nothing where there is one."""
    options = [("", "right or wrong"), ("right", "right"), ("wrong", "wrong")]
    made = [Control(f"model{place}", run.label, options) for place, run in enumerate(group.runs, 1)]
    return made if len(made) > 1 else []


def controls(group: Group) -> list[Control]:
    """What questions of this group can be selected and sorted by, besides subjects, words and single models."""
    runs = len(group.runs)
    if runs == 1:
        filters = [("all-wrong", "wrong"), ("all-right", "right")]
    else:
        filters = [("all-wrong", "all models are wrong"), ("all-right", "all models are right")]
        filters += [("disagree", "the models disagree")]
        filters += [("same-wrong", "all give the same wrong answer")]
        filters += [(f"missed-{count}", f"{count} of {runs} are wrong") for count in range(1, runs)] if runs > 2 else []
    orders = [("most-missed", "missed by most first"), ("least-missed", "missed by fewest first")] if runs > 1 else []
    if group.has_choices:
        orders += [("behind", "right choice furthest behind"), ("close", "closest calls")]
        orders += [("ahead", "right choice furthest ahead")]
    return [
        Control("filter", "Show", [("", "all"), *filters]),
        Control("sort", "Order", [("", "as in the data"), *orders]),
    ]


def link(group: str, **state: str | int) -> str:
    """The page's address of some of a group's questions: `filter`, `subject`, `model1`, `question` and so on."""
    return f"#q:{urlencode({'group': group, **state})}"


def question_id(key: Key) -> str:
    """How a link names a question."""
    return f"{key[0]}:{key[1]}"


def _told(group: Group, texts: Texts) -> dict[str, Any]:
    """What was saved of the texts, a column of each kind that is there."""
    asked = [_asked(row) for row in texts]
    contexts = {context: place for place, context in enumerate(dict.fromkeys(own for own, _ in asked if own))}
    records = [group.runs[0].records[key] for key in group.keys]
    columns: dict[str, list[Any]] = {
        "question": [question for _, question in asked],
        "context": [contexts.get(context or "") for context, _ in asked],
        "choices": [_choices(row, record) for row, record in zip(texts, records, strict=True)],
        "solution": [_solution(row, record) for row, record in zip(texts, records, strict=True)],
    }
    held = {name: own if any(one is not None for one in own) else None for name, own in columns.items()}
    return held | {"contexts": list(contexts) or None}


def _asked(row: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The paragraph that a question is about, and the question, which may have been saved in one text."""
    context, question = _text(row, "context"), _text(row, "question")
    if context and question and context in question:
        before, _, after = question.partition(context)
        if after.strip():
            return (before + context).strip(), after.strip()
        return None, question
    return context, question


def _solution(row: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    """A worked solution, where it is more than what is right."""
    text = (_text(row, "solution") or "").strip()
    return text if text and "response" in record and text not in record["gold"] else None


def _text(row: Mapping[str, Any], name: str) -> str | None:
    return text if isinstance(text := row.get(name), str) else None


def _choices(row: Mapping[str, Any], record: Mapping[str, Any]) -> list[str] | None:
    """A question's choices where they are texts, as many as were scored."""
    own, size = row.get("choices"), len(record.get("loglikelihoods", ()))
    if not isinstance(own, list) or len(own) != size or not all(isinstance(choice, str) for choice in own):
        return None
    return own


def _metrics(group: Group) -> list[str]:
    """The metrics that say more than whether an answer is right."""
    records = [run.records[key] for run in group.runs for key in group.keys]
    names = dict.fromkeys(name for record in records for name in record["metrics"])
    return [name for name in names if any(record["metrics"].get(name) != record["correct"] for record in records)]


def _answers(run: Run, group: Group, metrics: Sequence[str]) -> dict[str, Any]:
    """A model's answers."""
    records = [run.records[key] for key in group.keys]
    told: dict[str, Any] = {
        "correct": "".join("01"[bool(record["correct"])] for record in records),
        "chosen": [record["prediction"] for record in records],
        "metrics": {name: [_number(record["metrics"].get(name)) for record in records] for name in metrics},
    }
    if group.has_choices:
        told["scores"] = [[_number(score) for score in record["loglikelihoods"]] for record in records]
    else:
        told["response"] = [record["response"] for record in records]
        told["cut"] = "".join("01"[record["finish_reason"] == "length"] for record in records)
    return told


def _number(value: float | None) -> float | None:
    """Rounded; None for what is not there, and for what JSON has no number for."""
    return round(value, DIGITS) if value is not None and math.isfinite(value) else None
