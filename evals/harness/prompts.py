"""Rows -> prompts, exactly as lm-evaluation-harness 0.4.13 builds them. Pure: no model, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from evals.data.question import LETTERS, Question

if TYPE_CHECKING:
    from engine.text.tokenizer import Tokenizer

Render = Callable[[Sequence[Mapping[str, str]]], str]  # messages -> the text that a model is given


def question_block(question: Question) -> str:
    """The question as it is asked. Only the question's text is stripped, never the choices."""
    choices = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, question.choices, strict=True))
    return f"{question.question.strip()}\n{choices}Answer:"


def mmlu_description(subject: str) -> str:
    """What stands before the first question."""
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"


def mmlu_examples(shots: Sequence[Question]) -> list[tuple[str, str]]:
    """Questions as they are asked, with the letters of their answers."""
    return [(question_block(shot), LETTERS[shot.answer]) for shot in shots]


def encode_pairs(
    encode_all: Callable[[Sequence[str]], list[list[int]]], requests: Sequence[tuple[str, str]]
) -> list[tuple[list[int], list[int]]]:
    """The ids of contexts, and of their continuations: what the ids of both together have beyond the context's.

    White space at a context's end belongs to the continuation, because tokenizers put it before a word.
    """
    moved = [(context.rstrip(), context[len(context.rstrip()) :] + continuation) for context, continuation in requests]
    texts = list(dict.fromkeys(text for context, continuation in moved for text in (context, context + continuation)))
    ids = dict(zip(texts, encode_all(texts), strict=True))
    return [(ids[context], ids[context + continuation][len(ids[context]) :]) for context, continuation in moved]


def encoder(tokenizer: Tokenizer) -> Callable[[Sequence[str]], list[list[int]]]:
    """Texts -> ids as lm-evaluation-harness takes them: with the tokenizer's BOS, but never twice."""
    named = tokenizer.special_tokens
    begins = named.get("bos_token", named.get("eos_token"))

    def encode_all(texts: Sequence[str]) -> list[list[int]]:
        begun = [begins is not None and text.startswith(begins) for text in texts]
        if len(set(begun)) > 1:
            return [encode_all([text])[0] for text in texts]
        return tokenizer.encode_all(texts, add_special_tokens=not any(begun))

    return encode_all
