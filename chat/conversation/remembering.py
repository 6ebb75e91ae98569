"""A conversation with a memory: what is recalled for a turn, and stored after it. Nothing is generated here."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from chat.context import FittedPrompt, place_memories
from chat.conversation.events import Notice
from chat.conversation.transcript import Transcript, remembered
from chat.conversation.tree import Turn
from chat.images import shown, text_of
from engine.runtime.errors import BareloopError, is_out_of_memory
from engine.runtime.wording import plural


class Remembering(Transcript):
    """A transcript whose memory is read and written, if it has one."""

    def _recall(self, prompt: FittedPrompt) -> Generator[Notice, None, FittedPrompt]:
        """Look for memories that have to do with the message, once a turn; announce those that were not there.

        A reply that goes on from its beginning has the memories that it had.
        """
        if self.memory is None or len(self.turns[-1]) > 1:
            return prompt
        before = self.memory.recalled.block
        try:
            with shortage_explained():
                prompt = self._with_memories(prompt)
        except BareloopError as error:
            yield Notice("warning", f"nothing was looked up: {error}")
        recalled = self.memory.recalled
        if recalled.pieces and recalled.block != before:
            number = plural(len(recalled.pieces), "memory")
            yield Notice("recalled", f"recalled {number}, {plural(recalled.tokens, 'token')}")
        return prompt

    def _remember(self, turn: Turn, beginning: dict[str, Any] | None) -> Iterator[Notice]:
        """Store a turn, if it is finished. `beginning`: its reply, before it was continued."""
        if self.memory is None or turn[1].get("finish_reason") == "cancelled":
            return
        before = "" if beginning is None else remembered([turn[0], beginning])
        try:
            with shortage_explained():
                self.memory.remember(remembered(turn), before)
        except BareloopError as error:
            yield Notice("warning", f"this turn was not remembered: {error}")

    def _with_memories(self, prompt: FittedPrompt) -> FittedPrompt:
        """The same prompt with the memories that have to do with its last message.

        Turns in it are not recalled. Raises `BareloopError` if the memory cannot be read.
        """
        assert self.memory is not None
        budget, history = self.budget, self.settings.history
        first = prompt.start if history else len(self.turns) - 1
        turns, content = self.turns[first:], self.turns[-1][0]["content"]
        message = text_of(content) if text_of(content).strip() else shown(content)
        present, left = ([remembered(turn) for turn in part] for part in (turns[:-1], self.turns[:first]))
        # A block adds about as many tokens to a short prompt, in which it stands in the same place.
        short = [[_dot("user"), _dot("assistant")]] * (len(turns) > 1) + [[_dot("user")]]
        empty, used = self.count(self._messages(short)), self.count(self._messages(turns))

        def count(block: str) -> int:
            return self.count(self._messages(short, block)) - empty

        self.memory.recall(message, present, min(budget.memories, budget.room - used), count, left)
        system, summary, role = self.settings.system, self._visible_summary, self.model.system_role
        turns = self.turns if history else turns
        placed = place_memories(prompt, self._memories, system, turns, budget, self.count, summary, role)
        if placed.memories:
            self.memory.recalled = replace(self.memory.recalled, tokens=placed.tokens - used)
        return self._noted(placed)


def _dot(role: str) -> dict[str, Any]:
    return {"role": role, "content": "."}


@contextmanager
def shortage_explained() -> Iterator[None]:
    """Turn an error of Python or torch about memory into one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise BareloopError(
                "out of memory; the conversation is kept; use a smaller model, or a new conversation"
            ) from error
        raise
