"""One multiple-choice question of MMLU."""

from __future__ import annotations

from dataclasses import dataclass

LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Question:
    """One row of MMLU: four choices, the right one's place, and the row's place in its subject's split."""

    subject: str
    index: int
    question: str
    choices: tuple[str, ...]
    answer: int
