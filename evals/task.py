"""What a benchmark is: its questions, and how each is asked, shown and exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evals.prompts import Render
from evals.store import Key


@dataclass(frozen=True)
class Item:
    """One question as a model is asked it: a request for each choice, and the right one's place."""

    subject: str
    index: int  # row of the subject's split
    requests: list[tuple[str, str]]  # context and continuation
    gold: int

    @property
    def key(self) -> Key:
        return self.subject, self.index


@dataclass(frozen=True)
class Task:
    """A benchmark: its questions, and how each is asked, shown and exported."""

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
    config: Callable[[str], Mapping[str, Any]]  # a subject's definition, in lm-evaluation-harness's words

    @cached_property
    def wanted(self) -> set[Key]:
        """The questions to be scored."""
        return {(subject, row) for subject, rows in self.questions.items() for row in range(len(rows[: self.limit]))}

    def select(self, records: Mapping[Key, Any]) -> dict[Key, Any]:
        """Of these records those that are wanted, in order; where the data is not here, by their subjects' names."""
        if self.questions:
            return {key: records[key] for key in sorted(self.wanted & records.keys())}
        subjects = self.choose(sorted({subject for subject, _ in records}))
        keys = sorted(key for key in records if key[0] in subjects and (self.limit is None or key[1] < self.limit))
        return {key: records[key] for key in keys}
