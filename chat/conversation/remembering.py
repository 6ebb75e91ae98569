"""A conversation with a memory: what is recalled for a turn, and stored after it. Nothing is generated here."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from chat.context import FittedPrompt, place_memories, prompt_messages
from chat.conversation.events import Notice
from chat.conversation.transcript import Transcript, remembered
from chat.conversation.tree import Turn
from engine.runtime.errors import BareloopError, is_out_of_memory


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
            number = len(recalled.pieces)
            text = f"recalled {number} {'memory' if number == 1 else 'memories'}, {recalled.tokens:,} tokens"
            yield Notice("recalled", text)
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
        budget, system, history = self.budget, self.settings.system, self.settings.history
        summary, fold = self._visible_summary, self.model.rejects_system_role
        turns = self.turns if history else self.turns[-1:]
        first = prompt.start if history else len(self.turns) - 1
        shown, left = ([remembered(turn) for turn in part] for part in (self.turns[first:-1], self.turns[:first]))
        probe = [[{"role": "user", "content": "."}]]
        empty = self.count(prompt_messages(system, probe, summary, fold))

        def count(block: str) -> int:
            return self.count(prompt_messages(system, probe, summary, fold, block)) - empty

        used = self.count(prompt_messages(system, turns[prompt.start :], summary, fold))
        self.memory.recall(turns[-1][0]["content"], shown, min(budget.memories, budget.room - used), count, left)
        return self._noted(place_memories(prompt, self._memories, system, turns, budget, self.count, summary, fold))


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
