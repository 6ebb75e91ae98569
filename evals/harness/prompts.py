"""Rows -> prompts, exactly as lm-evaluation-harness 0.4.13 builds them. Pure: no model, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from evals.data.question import LETTERS, MMLUQuestion

Render = Callable[[Sequence[Mapping[str, str]]], str]  # chat messages -> prompt text


class TextEncoder(Protocol):
    """A tokenizer as far as prompts need one: the engine's, or a server's."""

    special_tokens: dict[str, str]  # by role: bos_token, eos_token

    def encode_all(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Return the token ids of each text, by default with the special tokens that the tokenizer adds."""
        ...


def question_block(question: MMLUQuestion) -> str:
    """Format a question with its choices. Only the question's text is stripped, never the choices."""
    choices = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, question.choices, strict=True))
    return f"{question.question.strip()}\n{choices}Answer:"


def mmlu_description(subject: str) -> str:
    """Return the text before the first question of a subject."""
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"


def mmlu_examples(shots: Sequence[MMLUQuestion]) -> list[tuple[str, str]]:
    """Return formatted questions with the letters of their answers."""
    return [(question_block(shot), LETTERS[shot.answer]) for shot in shots]


def encode_pairs(
    encode_all: Callable[[Sequence[str]], list[list[int]]], requests: Sequence[tuple[str, str]]
) -> list[tuple[list[int], list[int]]]:
    """Encode (context, continuation) pairs: ids of the context, and the further ids of both texts together.

    White space at the end of a context is moved to the continuation, because tokenizers attach it to the next word.
    """
    moved = [(context.rstrip(), context[len(context.rstrip()) :] + continuation) for context, continuation in requests]
    texts = list(dict.fromkeys(text for context, continuation in moved for text in (context, context + continuation)))
    ids = dict(zip(texts, encode_all(texts), strict=True))
    return [(ids[context], ids[context + continuation][len(ids[context]) :]) for context, continuation in moved]


def encoder(tokenizer: TextEncoder) -> Callable[[Sequence[str]], list[list[int]]]:
    """Return a function that encodes texts as lm-evaluation-harness does: with the tokenizer's BOS, but never twice."""
    named = tokenizer.special_tokens
    bos = named.get("bos_token", named.get("eos_token"))

    def encode_all(texts: Sequence[str]) -> list[list[int]]:
        starts_with_bos = [bos is not None and text.startswith(bos) for text in texts]
        if len(set(starts_with_bos)) > 1:
            return [encode_all([text])[0] for text in texts]
        return tokenizer.encode_all(texts, add_special_tokens=not any(starts_with_bos))

    return encode_all
