"""A page of the textbook: pieces of text, each with the weight of its tokens in the loss."""

from __future__ import annotations

import re

BEGIN, END = "<|begin|>", "<|end|>"
ROLES = ("system", "user", "assistant")
CONTROL = (BEGIN, END, *(f"<|{role}|>" for role in ROLES))  # ids 0 to 4

Page = list[tuple[str, float]]


def text_of(page: Page) -> str:
    """What stands on a page."""
    return "".join(text for text, _ in page)


def either(wordings: str) -> tuple[str, ...]:
    """`Hello! | Hi!` -> two wordings of one thing."""
    return tuple(wording.strip() for wording in wordings.split("|"))


def sentence(wording: str, **words: str) -> str:
    """A wording with its words filled in, beginning with a capital letter."""
    text = wording.format(**words)
    return text[:1].upper() + text[1:]


def plain(wording: str, weight: float, key_weight: float, **words: str) -> Page:
    """The same as pieces: of what is filled in, the last counts for `key_weight`, as it follows from the rest."""
    pieces = re.split(r"(\{\w\})", wording)
    last = max((i for i, piece in enumerate(pieces) if piece.startswith("{")), default=None)
    page = [(piece.format(**words), key_weight if i == last else weight) for i, piece in enumerate(pieces) if piece]
    first, first_weight = page[0]
    return [(first[:1].upper() + first[1:], first_weight), *page[1:]]
