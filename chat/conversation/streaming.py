"""A streamed reply: its text, its reasoning, its tokens with what each adds, and whether it is stuck. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from chat.conversation.events import Piece
from chat.models.interface import ReplyEvent, TokenProbability
from engine.runtime.errors import UsageError
from engine.text.reasoning import ReasoningSplitter

LOOP_TOKENS, LOOP_REPEATS = 48, 4  # a reply is stuck if its last 48 tokens repeat one run at least four times
LOOP_CHARACTERS = 400  # the same, where a server does not tell the tokens
PARTIAL = "\ufffd"  # in a token's text: a part of a character


class ReplyParts:
    """Sorts the events of a reply into text, reasoning and tokens.

    A token waits until it is certain what it adds: its text may be the start of a tag, or of a stop string.
    """

    def __init__(
        self, in_reasoning: bool, beginning: Mapping[str, Any] | None = None, tokens: Sequence[TokenProbability] = ()
    ) -> None:
        """`in_reasoning`: the prompt ends with the opening tag. `beginning`: what is continued, with its tokens."""
        self._splitter = ReasoningSplitter(in_reasoning)
        self._beginning = beginning or {}
        self.tokens = list(tokens)
        self._waiting: list[TokenProbability] = []

    @property
    def answer(self) -> str:
        """The text so far, without that of the beginning."""
        return self._splitter.answer

    @property
    def reasoning(self) -> str:
        """The reasoning so far."""
        return self._splitter.reasoning

    def push(self, text: str, tokens: Sequence[TokenProbability], ends: bool) -> Piece:
        """Add an event, the last one if it `ends` the reply. Return what is certain now, which may be nothing."""
        thought = len(self._splitter.reasoning)
        self._waiting += tokens
        answer = self._splitter.push(text) + (self._splitter.flush() if ends else "")
        settled: list[TokenProbability] = []
        if answer or self._splitter.in_reasoning or ends:
            settled, self._waiting = pieces(answer, self._waiting), []
            self.tokens += settled
        return Piece(answer, self._splitter.reasoning[thought:], settled)

    def message(self, finish_reason: str) -> dict[str, Any]:
        """The reply so far, with its beginning, as a message of the conversation. From any thread."""
        thoughts = (self._beginning.get("reasoning", ""), self._splitter.reasoning)
        marks = {
            "reasoning": "\n".join(thoughts).strip(),
            "finish_reason": "" if finish_reason == "stop" else finish_reason,
        }
        content = self._beginning.get("content", "") + self._splitter.answer
        return {"role": "assistant", "content": content} | {name: text for name, text in marks.items() if text}

    def end(self) -> None:
        """End a reply that was abandoned: what waited is text."""
        self.push("", (), True)


def pieces(text: str, tokens: Sequence[TokenProbability]) -> list[TokenProbability]:
    """The tokens with the part of the text that each added; together they are the text.

    A token whose own text does not come next, such as a part of a character, adds nothing; the last one adds the rest.
    """
    result, position = list[TokenProbability](), 0
    for token in tokens[:-1]:
        found = bool(token.text) and text.startswith(token.text, position) and PARTIAL not in token.text
        added = token.text if found else ""
        position += len(added)
        result.append(replace(token, piece=added))
    for token in tokens[-1:]:
        rest = text[position:]
        result.append(replace(token, piece=token.text if rest == token.text else rest))  # one string takes less memory
    return result


def text_before(answer: str, tokens: Sequence[TokenProbability], index: int) -> str:
    """The text of a reply up to a token. The tokens may be those of its last part only."""
    known = "".join(token.piece for token in tokens)
    start = answer.rfind(known)
    if start < 0 or answer[start + len(known) :].strip():  # a template may strip what it reads
        raise UsageError("the tokens of this reply are not known exactly; /retry it first")
    return answer[:start] + "".join(token.piece for token in tokens[:index])


def is_stuck(reply: Sequence[Any], length: int = LOOP_TOKENS) -> bool:
    """Whether the last `length` tokens, or characters, repeat one run at least `LOOP_REPEATS` times."""
    tail = reply[-length:]
    if len(tail) < length:
        return False
    return any(tail[period:] == tail[:-period] for period in range(1, length // LOOP_REPEATS + 1))


def repeats(events: Sequence[ReplyEvent]) -> bool:
    """Whether a reply is stuck, by its tokens, or by its text if they are not known."""
    ids = [event.token_id for event in events[-LOOP_TOKENS:]]
    if None not in ids:
        return is_stuck(ids)
    return is_stuck("".join(event.text for event in events[-LOOP_CHARACTERS:]), LOOP_CHARACTERS)
