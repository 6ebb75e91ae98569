"""Texts to measure perplexity on, cut into windows of tokens. No model, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any

from engine.checkpoints import embedded
from engine.runtime.errors import BareloopError
from engine.runtime.files import local_path
from engine.runtime.rows import hub_rows

if TYPE_CHECKING:
    from engine.text.tokenizer import Tokenizer

WIKITEXT, WIKITEXT_PART = "Salesforce/wikitext", "wikitext-2-raw-v1"
CHARACTERS_PER_TOKEN = 8  # more than the textbook has on average, so that enough pages are drawn


def find_text(options: Any, model: str) -> tuple[str, str]:
    """Return a description of the text and the text: --text, or the default for this model.

    Raises `BareloopError` if the text cannot be read or is empty.
    """
    if options.text is None:
        return textbook(CHARACTERS_PER_TOKEN * options.text_tokens) if model == embedded.NAME else wikitext()
    path = local_path(options.text)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BareloopError(f"cannot read --text {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BareloopError(f"--text {path} is not UTF-8 ({error.reason} at byte {error.start:,})") from None
    if not text.strip():
        raise BareloopError(f"--text {path} is empty")
    return path.name, text


def textbook(min_characters: int) -> tuple[str, str]:
    """Return a description and pages that the demo model was not trained on.

    Only lessons and stories: the demo model was trained on every word of such pages.
    """
    from engine.demo.pages import text_of
    from engine.demo.textbook import Mix, pages

    generator, text = pages(Random("quantization"), Mix(0.01, quizzes=0.01)), ""
    while len(text) < min_characters:
        kind, page = next(generator)
        text += text_of(page) if kind in ("lesson", "story") else ""
    return "unseen pages of its textbook", text


@cache
def wikitext() -> tuple[str, str]:
    """Return the name and the text of WikiText-2's test split, from the hub or from its cache if offline."""
    rows = hub_rows(WIKITEXT, WIKITEXT_PART, "test", alternative="name a text with --text FILE")
    return WIKITEXT_PART, "\n\n".join(row["text"] for row in rows)


def prefix_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that the tokenizer puts before a text: its BOS, or none."""
    plain, whole = (tokenizer.encode("a", add_special_tokens=special) for special in (False, True))
    return whole[: next(i for i in range(len(whole) + 1) if whole[i : i + len(plain)] == plain)]


def split_windows(ids: Sequence[int], size: int, prefix: Sequence[int]) -> list[list[int]]:
    """Cut a text into adjacent windows of up to `size` tokens, each starting with `prefix`.

    The prefix is not repeated where the text already has it. Every token of a window but the first is predicted;
    windows of a single token are dropped.
    """
    step = max(1, size - len(prefix))
    parts = [list(ids[first : first + step]) for first in range(0, len(ids), step)]
    windows = [part if part[: len(prefix)] == list(prefix) else [*prefix, *part] for part in parts]
    return [window for window in windows if len(window) > 1]
