"""What a benchmark is: its questions, and how each is asked, judged, shown and exported."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evals.data.catalogue import full_name
from evals.harness.prompts import Render
from evals.runs.run_file import Key


@dataclass(frozen=True)
class Item:
    """One question as a model is asked it.

    With choices there is a request for each, and `gold` holds the places of the right ones (mostly it is one place).
    Where the model answers in its own words there is one request, whose continuation tells how in JSON, and `gold`
    holds the answers that are accepted.
    """

    subject: str
    index: int  # row of the subject's split
    requests: list[tuple[str, str]]  # context and continuation
    gold: int | list[int] | list[str]

    @property
    def key(self) -> Key:
        return self.subject, self.index


@dataclass(frozen=True)
class Writing:
    """How a model answers in its own words: greedily, up to a text that ends it, or a number of tokens."""

    until: tuple[str, ...]
    max_new_tokens: int
    settings: Mapping[str, Any]  # the same in lm-evaluation-harness's words
    judge: Callable[[Any, str], tuple[dict[str, str], dict[str, float]]]
    # a row, a response -> the answers in it by how it is read, the reading that decides first; its metrics

    @property
    def request(self) -> str:
        """What stands in place of a continuation."""
        return json.dumps(self.settings, sort_keys=True)


@dataclass(frozen=True)
class Task:
    """A benchmark: its questions, and how each is asked, judged, shown and exported."""

    name: str  # mmlu
    title: str
    split: str
    shots: int
    digest: str  # of the data
    questions: Mapping[str, Sequence[Any]]  # all rows of every chosen subject; none where the data is not here
    choose: Callable[[Sequence[str]], list[str]]  # of the subjects that there are
    limit: int | None  # of each subject's questions
    groups: Mapping[str, Sequence[str]]  # of subjects
    item: Callable[[Any, Render | None], Item]
    alone: Callable[[Any, Render | None], str]  # a question's context without examples
    show: Callable[[Any, Mapping[str, Any]], str]  # a question and its record, to be read
    doc: Callable[[Any], Mapping[str, Any]]  # a row as it stands in the data
    text: Callable[[Any], Mapping[str, Any]]  # a row to be read: its question, its choices
    target: Callable[[Any], str]  # what is right, in lm-evaluation-harness's words
    config: Callable[[str], Mapping[str, Any]]  # a subject's definition, in lm-evaluation-harness's words
    version: float  # of that definition
    judge: Callable[[Any, Sequence[float]], dict[str, float]]  # a row, its choices' log-likelihoods -> metrics
    writing: Writing | None = None  # instead of choices

    @cached_property
    def wanted(self) -> set[Key]:
        """The questions to be scored."""
        return {(subject, row) for subject, rows in self.questions.items() for row in range(len(rows[: self.limit]))}

    def full_name(self, subject: str) -> str:
        """What lm-evaluation-harness calls a subject."""
        return full_name(self.name, subject)

    def select(self, records: Mapping[Key, Any]) -> dict[Key, Any]:
        """Of these records those that are wanted, in order; where the data is not here, by their subjects' names."""
        if self.questions:
            return {key: records[key] for key in sorted(self.wanted & records.keys())}
        subjects = self.choose(sorted({subject for subject, _ in records}))
        keys = sorted(key for key in records if key[0] in subjects and (self.limit is None or key[1] < self.limit))
        return {key: records[key] for key in keys}
