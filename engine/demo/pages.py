"""A page of the textbook: pieces of text, each with the weight of its tokens in the loss."""

from __future__ import annotations

import re

BEGIN, END = "<|begin|>", "<|end|>"
ROLES = ("system", "user", "assistant")
CONTROL = (BEGIN, END, *(f"<|{role}|>" for role in ROLES))  # ids 0 to 4

Page = list[tuple[str, float]]


def text_of(page: Page) -> str:
    """Return the text of a page."""
    return "".join(text for text, _ in page)


def alternatives(text: str) -> tuple[str, ...]:
    """Split `Hello! | Hi!` into its alternatives."""
    return tuple(alternative.strip() for alternative in text.split("|"))


def fill_in(template: str, **words: str) -> str:
    """Fill in the `{x}` of a template, and start with a capital letter."""
    text = template.format(**words)
    return text[:1].upper() + text[1:]


def fill_in_weighted(template: str, weight: float, key_weight: float, **words: str) -> Page:
    """`fill_in`, as pieces: the last word that is filled in has `key_weight`, because it follows from the others."""
    pieces = re.split(r"(\{\w\})", template)
    last = max((i for i, piece in enumerate(pieces) if piece.startswith("{")), default=None)
    page = [(piece.format(**words), key_weight if i == last else weight) for i, piece in enumerate(pieces) if piece]
    first, first_weight = page[0]
    return [(first[:1].upper() + first[1:], first_weight), *page[1:]]
