"""Rows -> prompts, exactly as lm-evaluation-harness 0.4.13 builds them. Pure: no model, no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def question_block(question: Question) -> str:
    """The question as it is asked. Only the question's text is stripped, never the choices."""
    choices = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, question.choices, strict=True))
    return f"{question.question.strip()}\n{choices}Answer:"


def mmlu_context(question: Question, shots: Sequence[Question]) -> str:
    """Description, the shots with their answers, and the question."""
    topic = question.subject.replace("_", " ")
    description = f"The following are multiple choice questions (with answers) about {topic}.\n\n"
    solved = "".join(f"{question_block(shot)} {LETTERS[shot.answer]}\n\n" for shot in shots)
    return description + solved + question_block(question)


def mmlu_requests(question: Question, shots: Sequence[Question]) -> list[tuple[str, str]]:
    """(context, continuation) for each of the four letters."""
    context = mmlu_context(question, shots)
    return [(context, f" {letter}") for letter in LETTERS]


def encode_pair(encode: Callable[[str], list[int]], context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The ids of a context, and of its continuation: what the ids of both together have beyond the context's length.

    White space at the context's end belongs to the continuation, because tokenizers put it before a word.
    """
    trailing = len(context) - len(context.rstrip())
    if trailing:
        context, continuation = context[:-trailing], context[-trailing:] + continuation
    start = encode(context)
    return start, encode(context + continuation)[len(start) :]
