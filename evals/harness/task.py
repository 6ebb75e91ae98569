"""Interface of a benchmark: its questions, and functions that prompt, judge, display and export them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from evals.data.catalogue import full_name
from evals.harness.prompts import Render
from evals.runs.run_file import Key


class BatchLimits(NamedTuple):
    """Limits of a batch."""

    tokens: int  # computed in one forward pass
    answers: int  # generated in parallel


@dataclass(frozen=True)
class Item:
    """One question as requests to a model.

    Multiple choice: one request per choice; `gold` is the index of the correct choice, or several indices. Generated
    answers: a single request, whose continuation holds the generation settings as JSON; `gold` holds the accepted
    answers.
    """

    subject: str
    index: int  # row in the subject's split
    requests: list[tuple[str, str]]  # (context, continuation)
    gold: int | list[int] | list[str]

    @property
    def key(self) -> Key:
        return self.subject, self.index


@dataclass(frozen=True)
class Generation:
    """How answers are generated (greedily, up to a stop string or a number of tokens) and judged."""

    until: tuple[str, ...]
    max_new_tokens: int
    settings: Mapping[str, Any]  # lm-evaluation-harness's generation_kwargs
    judge: Callable[[Any, str], tuple[dict[str, str], dict[str, float]]]
    # (row, response) -> extracted answer by filter, the deciding filter first; metrics, the deciding one first

    @property
    def request(self) -> str:
        """The settings as JSON, in place of a continuation."""
        return json.dumps(self.settings, sort_keys=True)


@dataclass(frozen=True)
class Task:
    """A benchmark in one setting. The type of a row depends on the benchmark."""

    name: str  # such as mmlu
    title: str
    split: str
    shots: int
    digest: str  # SHA-256 of the data
    questions: Mapping[str, Sequence[Any]]  # all rows of the chosen subjects; empty if the data is not available
    choose_subjects: Callable[[Sequence[str]], list[str]]  # filters a list of subjects
    limit: int | None  # questions per subject
    groups: Mapping[str, Sequence[str]]  # subjects by group
    make_item: Callable[[Any, Render | None], Item]  # (row, chat template or None)
    context_without_examples: Callable[[Any, Render | None], str]
    show: Callable[[Any, Mapping[str, Any]], str]  # (row, record) -> text for --verbose
    doc: Callable[[Any], Mapping[str, Any]]  # row -> the columns that lm-evaluation-harness exports
    display_fields: Callable[[Any], Mapping[str, Any]]  # row -> more columns for --save-question-data
    target: Callable[[Any], str]  # row -> lm-evaluation-harness's `target`
    harness_config: Callable[[str], Mapping[str, Any]]  # subject -> its definition in lm-evaluation-harness
    version: float  # of that definition
    choice_metrics: Callable[[Any, Sequence[float]], dict[str, float]]  # (row, log-likelihoods) -> metrics
    generation: Generation | None = None  # None for multiple choice

    @cached_property
    def wanted(self) -> set[Key]:
        """The questions to evaluate: those of the chosen subjects, up to the limit."""
        return {(subject, row) for subject, rows in self.questions.items() for row in range(len(rows[: self.limit]))}

    def full_name(self, subject: str) -> str:
        """Return lm-evaluation-harness's name of a subject."""
        return full_name(self.name, subject)

    def select(self, records: Mapping[Key, Any]) -> dict[Key, Any]:
        """Return the wanted records, sorted. Without the data, they are chosen by subject name and limit."""
        if self.questions:
            return {key: records[key] for key in sorted(self.wanted & records.keys())}
        subjects = self.choose_subjects(sorted({subject for subject, _ in records}))
        keys = sorted(key for key in records if key[0] in subjects and (self.limit is None or key[1] < self.limit))
        return {key: records[key] for key in keys}
