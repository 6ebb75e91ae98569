"""A reply that begins with `<think> … </think>`, told apart as it streams: what a model thinks, and what it says."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


class Reasoning:
    """Give it a reply's text piece by piece; where it `thinks` already, the prompt has opened the block."""

    def __init__(self, thinks: bool = False) -> None:
        self.thinks: bool | None = True if thinks else None  # None: nothing but white space has come yet
        self.thoughts = ""
        self.answer = ""
        self._rest = ""  # what may yet become a tag, or is white space before the answer

    def push(self, text: str) -> str:
        """Take more text, and return what of the answer is now certain."""
        self._rest += text
        if self.thinks is None:
            begun = self._rest.lstrip()
            if len(begun) < len(OPEN) and OPEN.startswith(begun):
                return ""
            self.thinks = begun.startswith(OPEN)
            self._rest = begun.removeprefix(OPEN) if self.thinks else self._rest
        if self.thinks:
            thought, closed, after = self._rest.partition(CLOSE)
            if not closed:
                held = max((n for n in range(1, len(CLOSE)) if thought.endswith(CLOSE[:n])), default=0)
                self._rest = thought[len(thought) - held :]
                self.thoughts += thought[: len(thought) - held]
                return ""
            self.thoughts += thought
            self.thinks, self._rest = False, after
        said = self._rest.lstrip() if self.thoughts and not self.answer else self._rest
        self._rest = ""
        self.answer += said
        return said

    def end(self) -> str:
        """The reply is over: what was held back is what it looks like."""
        held, self._rest = self._rest, ""
        if self.thinks:
            self.thoughts += held
            return ""
        self.answer += held
        return held


def split(text: str) -> tuple[str, str]:
    """The thoughts of a whole reply, without the white space around them, and what it says."""
    reply = Reasoning()
    reply.push(text)
    reply.end()
    return reply.thoughts.strip(), reply.answer
