"""What perplexity is measured on: a text, by its tokens, cut into windows. No model, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any

from engine.checkpoints import embedded
from engine.runtime.errors import BareloopError
from engine.runtime.files import local_path
from evals.data.source import look_up

if TYPE_CHECKING:
    from engine.text.tokenizer import Tokenizer

WIKITEXT, WIKITEXT_PART = "Salesforce/wikitext", "wikitext-2-raw-v1"
TOKEN = 8  # letters: more than a token of the textbook has, so that enough pages are drawn


def find_text(options: Any, model: str) -> tuple[str, str]:
    """What the text is, and the text."""
    if options.text is None:
        return textbook(TOKEN * options.text_tokens) if model == embedded.NAME else wikitext()
    path = local_path(options.text)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BareloopError(f"cannot read --text {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BareloopError(f"--text {path} is no text in UTF-8 ({error.reason} at byte {error.start:,})") from None
    if not text.strip():
        raise BareloopError(f"--text {path} is empty")
    return path.name, text


def textbook(letters: int) -> tuple[str, str]:
    """Pages that the demo model has not seen, of the kinds in which it has learned every word: lessons and stories."""
    from engine.demo.pages import text_of
    from engine.demo.textbook import Mix, pages

    drawn, text = pages(Random("quantization"), Mix(0.01, quizzes=0.01)), ""
    while len(text) < letters:
        kind, page = next(drawn)
        text += text_of(page) if kind in ("lesson", "story") else ""
    return "unseen pages of its textbook", text


@cache
def wikitext() -> tuple[str, str]:
    """From the hub, or its cache where there is no network."""
    from huggingface_hub import constants

    look_up(WIKITEXT)

    from datasets import load_dataset

    try:
        rows = load_dataset(WIKITEXT, WIKITEXT_PART, split="test")
    except Exception as error:  # the library raises a dozen kinds, none with a way out
        reason = "which cannot be reached" if constants.HF_HUB_OFFLINE else type(error).__name__
        raise BareloopError(f"cannot get {WIKITEXT} from the hub ({reason}); name a text with --text FILE") from error
    return WIKITEXT_PART, "\n\n".join(row["text"] for row in rows)


def beginning(tokenizer: Tokenizer) -> list[int]:
    """The ids that the tokenizer puts before a text: its BOS, or none."""
    plain, whole = (tokenizer.encode("a", add_special_tokens=special) for special in (False, True))
    return whole[: next(i for i in range(len(whole) + 1) if whole[i : i + len(plain)] == plain)]


def cut(ids: Sequence[int], size: int, begin: Sequence[int]) -> list[list[int]]:
    """A text as windows of up to `size` tokens, end to end, each with `begin` before it, unless it stands there.

    Every token of a window but its first is predicted; a window without one is left out.
    """
    step = max(1, size - len(begin))
    parts = [list(ids[first : first + step]) for first in range(0, len(ids), step)]
    windows = [part if part[: len(begin)] == list(begin) else [*begin, *part] for part in parts]
    return [window for window in windows if len(window) > 1]
