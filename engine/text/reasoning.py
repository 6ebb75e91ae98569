"""Split a streamed reply that begins with `<think> … </think>` into its reasoning and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.text.tokenizer import Tokenizer

OPEN, CLOSE = "<think>", "</think>"


class ReasoningSplitter:
    """Splits a reply piece by piece. `in_reasoning`: the prompt has already written the opening tag."""

    def __init__(self, in_reasoning: bool = False) -> None:
        self.in_reasoning: bool | None = True if in_reasoning else None  # None: only white space so far
        self.reasoning = ""
        self.answer = ""
        self._pending = ""  # text that may become a tag, or white space before the answer

    def push(self, text: str) -> str:
        """Add text. Return the part of the answer that is now certain."""
        self._pending += text
        if self.in_reasoning is None:
            start = self._pending.lstrip()
            if len(start) < len(OPEN) and OPEN.startswith(start):
                return ""
            self.in_reasoning = start.startswith(OPEN)
            self._pending = start.removeprefix(OPEN) if self.in_reasoning else self._pending
        if self.in_reasoning:
            thought, closed, after = self._pending.partition(CLOSE)
            if not closed:
                partial = max((n for n in range(1, len(CLOSE)) if thought.endswith(CLOSE[:n])), default=0)
                self._pending = thought[len(thought) - partial :]
                self.reasoning += thought[: len(thought) - partial]
                return ""
            self.reasoning += thought
            self.in_reasoning, self._pending = False, after
        text = self._pending.lstrip() if self.reasoning and not self.answer else self._pending
        self._pending = ""
        self.answer += text
        return text

    def flush(self) -> str:
        """End the reply: pending text is no tag. Return the part of it that belongs to the answer."""
        pending, self._pending = self._pending, ""
        if self.in_reasoning:
            self.reasoning += pending
            return ""
        self.answer += pending
        return pending


def opens_reasoning(tokenizer: Tokenizer, ids: Sequence[int]) -> bool:
    """Whether a prompt ends with the opening tag, which some templates write."""
    return tokenizer.decode(ids[-8:], skip_special_tokens=False).rstrip().endswith(OPEN)


def split(text: str) -> tuple[str, str]:
    """Split a whole reply into its reasoning, stripped, and its answer."""
    splitter = ReasoningSplitter()
    splitter.push(text)
    splitter.flush()
    return splitter.reasoning.strip(), splitter.answer
