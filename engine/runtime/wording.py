"""Words of messages."""

from __future__ import annotations


def plural(number: int, noun: str) -> str:
    """A number of things, as messages say it: "1 question", "1,234 memories"."""
    several = f"{noun.removesuffix('y')}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else several}"
