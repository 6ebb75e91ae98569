"""The first examples as text, with what is learned marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from engine.finetune.data.example import Dataset, Example

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

    from engine.text.tokenizer import Tokenizer

LONGEST = 400  # characters of a part; a longer one is shortened in the middle
LEARNED = "bold underline green"


@dataclass(frozen=True)
class Preview:
    """Examples for a terminal, where learned tokens have a colour and a line below, or for a file, where they are
    between « and ». `print` and rich's `Console.print` both take it.
    """

    titles: list[str]
    parts: list[list[tuple[str, bool]]]  # of each example: text, and whether it is learned

    def __str__(self) -> str:
        texts = ("".join(f"«{text}»" if learned else text for text, learned in parts) for parts in self.parts)
        return "\n".join(f"{title}\n{text}" for title, text in zip(self.titles, texts, strict=True))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        if not console.is_terminal or console.color_system is None or console.no_color:
            yield Text(str(self))
            return
        for title, parts in zip(self.titles, self.parts, strict=True):
            yield Text(title, style="dim")
            yield Text.assemble(*((text, LEARNED if learned else "") for text, learned in parts))


def preview(dataset: Dataset, tokenizer: Tokenizer, count: int = 3) -> Preview:
    """The first `count` examples of the training data, or of the held-out data if there are no others."""
    examples = (dataset.train or dataset.held_out)[:count]
    titles = [
        f"example {number}: {len(example.ids):,} tokens, {sum(example.learned):,} of them learned"
        for number, example in enumerate(examples, 1)
    ]
    return Preview(titles, [_parts(example, tokenizer) for example in examples])


def _parts(example: Example, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    pairs = zip(example.ids, map(bool, example.learned), strict=True)
    groups = [(learned, [token for token, _ in group]) for learned, group in groupby(pairs, key=lambda pair: pair[1])]
    return [(shorten(visible(_text(ids, tokenizer))), learned) for learned, ids in groups]


def _text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    return b"".join(map(tokenizer.token_bytes, ids)).decode(errors="replace")


def visible(text: str) -> str:
    """The text in one line, with its control characters as Python writes them."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def shorten(text: str) -> str:
    """The text without its middle if it is longer than `LONGEST` characters."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]} … {len(text) - 2 * half:,} characters … {text[-half:]}"
