"""A question of MMLU."""

from __future__ import annotations

from dataclasses import dataclass

LETTERS = ("A", "B", "C", "D")


@dataclass(frozen=True)
class MMLUQuestion:
    """One row of MMLU with its four choices."""

    subject: str
    index: int  # in the subject's split
    question: str
    choices: tuple[str, ...]
    answer: int  # index of the correct choice
