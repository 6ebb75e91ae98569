"""Texts cut into pieces of some 200 tokens: at paragraphs, else at sentences, else at words. Loads without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chat.memory.database import spaced

SIZE, OVERLAP = 200, 40  # tokens
PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
# The last three are the full stops of Chinese and Japanese, which no space follows.
SENTENCE = re.compile("(?<=[.!?\u2026])[\"')\\]\u201d\u2019\u00bb]*\\s+|(?<=[\u3002\uff01\uff1f])")
SPACE = re.compile(r"\s+")
NEVER = re.compile(r"(?!)")

Count = Callable[[str], int]


def count_words(text: str) -> int:
    """About the number of tokens: 1.3 for each word, and one for six characters where words are longer than eight."""
    return round(max(1.3 * len(spaced(text).split()), len(text) / 6 if " " not in text[:100] else 0))


@dataclass(frozen=True)
class _Unit:
    """A sentence, or part of a long one, as a slice of the text."""

    start: int
    end: int
    tokens: int
    paragraph: int


def split(text: str, count: Count = count_words, size: int = SIZE, overlap: int = OVERLAP) -> list[str]:
    """Cut a text into pieces of at most `size` tokens; up to `overlap` of them repeat the end of the piece before.

    `count`: number of tokens of a text. Pieces are slices of the text, so that they can be found in it.
    """
    return [text[start:end] for start, end in slices(text, count, size, overlap)]


def slices(text: str, count: Count, size: int, overlap: int) -> list[tuple[int, int]]:
    """Where the pieces of a text begin and end."""
    units = list(_units(text, count, size))
    lengths: dict[int, int] = {}  # of the paragraphs
    for unit in units:
        lengths[unit.paragraph] = lengths.get(unit.paragraph, 0) + unit.tokens
    pieces: list[tuple[int, int]] = []
    start, end, tokens, paragraph, is_new = 0, 0, 0, -1, False
    for unit in units:
        begins = unit.paragraph != paragraph and tokens >= size / 2 and tokens + lengths[unit.paragraph] > size
        if is_new and (begins or tokens + unit.tokens > size):
            pieces.append((start, end))
            start, tokens = _overlap(text, start, end, tokens, min(overlap, tokens // 2, size - unit.tokens))
            is_new = False
        if start == end:
            start = unit.start
        end, tokens, paragraph, is_new = unit.end, tokens + unit.tokens, unit.paragraph, True
    return [*pieces, (start, end)] if is_new else pieces


def _overlap(text: str, start: int, end: int, tokens: int, wanted: int) -> tuple[int, int]:
    """Where the last `wanted` of a slice's tokens begin, and how many they are: at a sentence if one begins there."""
    if wanted <= 0 or not tokens:
        return end, 0
    share = min(1.0, wanted / tokens)
    earliest = end - int((end - start) * share)
    starts = [match.end() for match in SENTENCE.finditer(text, earliest, end) if match.end() < end]
    words = [match.end() for match in SPACE.finditer(text, earliest, end) if match.end() < end]
    half = end - (end - earliest) // 2
    begin = next((place for place in (*starts[:1], *words[:1]) if place <= half), earliest)
    begin = end - len(text[begin:end].lstrip())
    return begin, round(tokens * (end - begin) / max(1, end - start))


def _units(text: str, count: Count, size: int) -> Iterator[_Unit]:
    """The sentences of each paragraph, in parts of at most `size` tokens."""
    for number, (start, end) in enumerate(_slices(text, PARAGRAPH, 0, len(text))):
        for first, last in _slices(text, SENTENCE, start, end):
            for part, stop in _halves(text, first, last, count, size):
                yield _Unit(part, stop, count(text[part:stop]), number)


def _slices(text: str, separator: re.Pattern[str], start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a slice between separators that have anything but space, without the space around them."""
    cuts = [(match.start(), match.end()) for match in separator.finditer(text, start, end)]
    for stop, following in [*cuts, (end, end)]:
        part = text[start:stop]
        if part.strip():
            yield start + len(part) - len(part.lstrip()), start + len(part.rstrip())
        start = following


def _halves(text: str, start: int, end: int, count: Count, size: int) -> Iterator[tuple[int, int]]:
    """A slice in parts of at most `size` tokens, cut at the line end or space before the middle if there is one."""
    if end - start < 2 or count(text[start:end]) <= size:
        yield start, end
        return
    middle = (start + end) // 2
    space = max(text.rfind("\n", start + 1, middle), 0) or max(text.rfind(" ", start + 1, middle), 0)
    cut = space if space > start + (end - start) // 8 else middle
    for first, last in ((start, cut), (cut, end)):
        for part, stop in _slices(text, NEVER, first, last):
            yield from _halves(text, part, stop, count, size)
