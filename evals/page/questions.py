"""The report's question browser: a group's questions as JSON, its filters, and links to selections. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from evals.runs.collection import Group, Run
from evals.runs.run_file import Key, correct_choices

DIGITS = 3  # decimals of log-likelihoods; 14,042 questions take a few megabytes
Texts = Sequence[Mapping[str, Any]]


def question_columns(group: Group) -> dict[str, Any]:
    """Return all questions of a group as columns: what each one is, and each model's answer to it.

    `question`, `choices`, `solution` and `context` (an index into `contexts`, which holds each paragraph once) are None
    where no text was saved.
    """
    subjects = group.subjects
    index_of = {name: index for index, name in enumerate(subjects)}
    golds = [group.runs[0].records[key]["gold"] for key in group.keys]
    texts = [group.texts.get(key, {}) for key in group.keys]
    metrics = _extra_metrics(group)
    return {
        "models": [run.label for run in group.runs],
        "subjects": subjects,
        "subject": [index_of[subject] for subject, _ in group.keys],
        "index": [index for _, index in group.keys],
        "gold": [correct_choices({"gold": gold}) for gold in golds],
        **_text_columns(group, texts),
        "runs": [_answer_columns(run, group, metrics) for run in group.runs],
    }


def embeddable_json(data: Any) -> str:
    """Return JSON that is safe inside a <script> element: no text can end the element or start a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")  # "<" occurs only inside strings


@dataclass(frozen=True)
class Control:
    """A <select> of the question browser. The first option is the default and selects everything."""

    name: str
    label: str
    options: Sequence[tuple[str, str]]


def model_controls(group: Group) -> list[Control]:
    """Return a control for each model: show questions it got right or wrong. None for a single model."""
    options = [("", "right or wrong"), ("right", "right"), ("wrong", "wrong")]
    made = [Control(f"model{number}", run.label, options) for number, run in enumerate(group.runs, 1)]
    return made if len(made) > 1 else []


def controls(group: Group) -> list[Control]:
    """Return the controls to filter and sort questions, besides search, subject and single models."""
    runs = len(group.runs)
    if runs == 1:
        filters = [("all-wrong", "wrong"), ("all-right", "right")]
    else:
        filters = [("all-wrong", "all models are wrong"), ("all-right", "all models are right")]
        filters += [("disagree", "the models disagree")]
        filters += [("same-wrong", "all give the same wrong answer")]
        filters += [(f"missed-{count}", f"{count} of {runs} are wrong") for count in range(1, runs)] if runs > 2 else []
    orders = [("most-missed", "most missed first"), ("least-missed", "least missed first")] if runs > 1 else []
    if group.has_choices:
        orders += [("behind", "right choice furthest behind"), ("close", "closest calls")]
        orders += [("ahead", "right choice furthest ahead")]
    return [
        Control("filter", "Show", [("", "all"), *filters]),
        Control("sort", "Order", [("", "as in the data"), *orders]),
    ]


def link(group: str, **state: str | int) -> str:
    """Return the page's address of a selection of questions: `filter`, `subject`, `model1`, `question` and so on."""
    return f"#q:{urlencode({'group': group, **state})}"


def question_id(key: Key) -> str:
    """Return a question's name in links."""
    return f"{key[0]}:{key[1]}"


def _text_columns(group: Group, texts: Texts) -> dict[str, Any]:
    """Return a column of each kind of saved text, None for a kind of which nothing was saved."""
    pairs = [_context_and_question(row) for row in texts]
    contexts = {context: index for index, context in enumerate(dict.fromkeys(own for own, _ in pairs if own))}
    records = [group.runs[0].records[key] for key in group.keys]
    columns: dict[str, list[Any]] = {
        "question": [question for _, question in pairs],
        "context": [contexts.get(context or "") for context, _ in pairs],
        "choices": [_choices(row, record) for row, record in zip(texts, records, strict=True)],
        "solution": [_solution(row, record) for row, record in zip(texts, records, strict=True)],
    }
    saved = {name: column if any(text is not None for text in column) else None for name, column in columns.items()}
    return saved | {"contexts": list(contexts) or None}


def _context_and_question(row: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Split a saved question from the paragraph it is about, which may be saved as part of the question."""
    context, question = _text(row, "context"), _text(row, "question")
    if context and question and context in question:
        before, _, after = question.partition(context)
        if after.strip():
            return (before + context).strip(), after.strip()
        return None, question
    return context, question


def _solution(row: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    """Return the worked solution of a generated answer, unless it only repeats the correct answer."""
    text = (_text(row, "solution") or "").strip()
    return text if text and "response" in record and text not in record["gold"] else None


def _text(row: Mapping[str, Any], name: str) -> str | None:
    return text if isinstance(text := row.get(name), str) else None


def _choices(row: Mapping[str, Any], record: Mapping[str, Any]) -> list[str] | None:
    """Return the saved choices if they are strings and as many as were scored."""
    choices, size = row.get("choices"), len(record.get("loglikelihoods", ()))
    if not isinstance(choices, list) or len(choices) != size or not all(isinstance(one, str) for one in choices):
        return None
    return choices


def _extra_metrics(group: Group) -> list[str]:
    """Return the metrics that differ from `correct` in some record."""
    records = [run.records[key] for run in group.runs for key in group.keys]
    names = dict.fromkeys(name for record in records for name in record["metrics"])
    return [name for name in names if any(record["metrics"].get(name) != record["correct"] for record in records)]


def _answer_columns(run: Run, group: Group, metrics: Sequence[str]) -> dict[str, Any]:
    records = [run.records[key] for key in group.keys]
    columns: dict[str, Any] = {
        "correct": "".join("01"[bool(record["correct"])] for record in records),
        "chosen": [record["prediction"] for record in records],
        "metrics": {name: [_rounded(record["metrics"].get(name)) for record in records] for name in metrics},
    }
    if group.has_choices:
        columns["scores"] = [[_rounded(score) for score in record["loglikelihoods"]] for record in records]
    else:
        columns["response"] = [record["response"] for record in records]
        columns["cut"] = "".join("01"[record["finish_reason"] == "length"] for record in records)
    return columns


def _rounded(value: float | None) -> float | None:
    """Round a number for JSON; None if it is missing or not finite."""
    return round(value, DIGITS) if value is not None and math.isfinite(value) else None
