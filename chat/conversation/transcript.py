"""What has been said, in all versions, and which part of it a model sees. Nothing is generated here."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from chat.context import Budget, FittedPrompt, Message, fit, prompt_messages
from chat.conversation.events import Notice, Settings
from chat.conversation.inspection import score_reply, with_times
from chat.conversation.recall import NOTHING, Memory
from chat.conversation.streaming import ReplyParts
from chat.conversation.tree import Tree, Turn
from chat.images import Content, shown
from chat.memory.pieces import turn_text
from chat.models.interface import ChatModel, TokenProbability
from engine.decoding.params import SamplingParams
from engine.runtime.errors import BareloopError, UsageError


class Transcript:
    """A conversation with one model: its turns and their other versions, its settings, its tokens."""

    def __init__(
        self,
        model: ChatModel,
        settings: Settings | None = None,
        now: datetime | None = None,
        memory: Memory | None = None,
    ) -> None:
        """`memory`: what is recalled, and finished turns are stored in; None: neither."""
        self.settings = settings or Settings()
        self.now = now or datetime.now()  # the date that the template prints; fixed, so that the prefix stays cached
        self.model = model.at(self.now)
        self.turns: list[Turn] = []  # the whole conversation as it is chosen; evicted turns stay in it
        self.start = 0  # index of the first turn in the prompt
        self.summary = ""  # of the turns before it
        self.title = ""  # chosen by the user
        self.unanswered: Content = ""  # the last message, if it got no reply: in the file until another one is sent
        self.memory = memory
        self._part: ReplyParts | None = None  # the reply that is being generated
        self._tree = Tree()

    @property
    def tree(self) -> Tree:
        """All versions of the turns; the path is `turns`."""
        self._tree.record(self.turns)
        return self._tree

    def restore(self, tree: Tree, start: int = 0, summary: str = "", title: str = "", unanswered: Content = "") -> None:
        """Take over a conversation."""
        self._tree, self.turns = tree, [node.turn for node in tree.path]
        self.start, self.summary, self.title = min(start, max(0, len(self.turns) - 1)), summary, title
        self.unanswered = unanswered
        if self.memory is not None:
            self.memory.recalled = NOTHING

    def written(self) -> tuple[list[Turn], list[dict[str, Any]]]:
        """The turns, and the versions off their path, as a file has them. From any thread, also during a reply.

        The part of a reply that is being generated is one that was stopped. The unanswered message is the last turn.
        """
        with self._tree.lock:
            tree, part = self.tree, self._part
            turns = [list(node.turn) for node in tree.path]
            message = part.message("cancelled") if part is not None else {}
            if turns and (message.get("content") or message.get("reasoning")):
                turns[-1][1:] = [message]
            waits = bool(self.unanswered) and (not turns or len(turns[-1]) > 1)
            branches = tree.branches(added=int(waits))
            return [*turns, *([[{"role": "user", "content": self.unanswered}]] if waits else [])], branches

    @property
    def warnings(self) -> list[Notice]:
        """What a user should know before the first message."""
        return [Notice("warning", text) for text in self.model.warnings(self.settings.window)]

    @property
    def budget(self) -> Budget:
        """Budget of the next prompt. Raises `ContextOverflowError` if the reserve leaves no room."""
        window = min(self.model.limit, self.settings.window or self.model.limit)
        share = 0.0 if self.memory is None else self.memory.share
        return Budget.of(window, self.params.max_new_tokens, self.settings.reserve, share)

    @property
    def params(self) -> SamplingParams:
        """The model's own defaults, as far as they are known, overridden by the user's settings."""
        return SamplingParams(**{**(self.model.defaults or {}), **self.settings.sampling})

    def knows(self, name: str) -> bool:
        """Whether `params` has the sampling parameter that the model uses, and not only the server has it."""
        return self.model.defaults is not None or name in (*self.settings.sampling, "max_new_tokens")

    def configure(self, **changes: Any) -> None:
        """Change fields of `settings`. Raises, and changes nothing, if a value is invalid."""
        before = self.settings
        self.settings = replace(before, **changes)
        try:
            _ = self.budget
        except BareloopError:
            self.settings = before
            raise

    def choose(self, turn: int, version: int) -> None:
        """Switch to another version of a turn. What follows is what followed it last. Raises `UsageError`."""
        index = self.index(turn)
        with self._tree.lock:
            path = self.tree.choose(index, version)
            if index < self.start and path[index] is not self.turns[index]:  # what was dropped is not on the new path
                self.start, self.summary = 0, ""
            self.turns[:] = path

    def undo(self) -> str:
        """Remove the last turn, in the version that is shown, and return its message as text.

        If it has other versions, the one before it, or else after it, is shown with what follows it: so only what is
        shown is ever removed.
        """
        index = self.index()
        removed = self.turns[index]
        if self.memory is not None and (text := remembered(removed)) not in map(remembered, self.turns[:index]):
            self.memory.forget_turn(text)  # first, as it may fail
        with self._tree.lock:
            self.turns[:] = self.tree.remove(index)
            self.start = min(self.start, max(0, len(self.turns) - 1))
        return shown(removed[0]["content"])

    def index(self, turn: int | None = None) -> int:
        """The index of a turn, by default of the last. Raises `UsageError` if there is no such turn."""
        self._require_turns()
        if turn is not None and not 0 <= turn < len(self.turns):
            raise UsageError(f"message {turn + 1}: this conversation has {len(self.turns)}")
        return len(self.turns) - 1 if turn is None else turn

    def count(self, messages: Sequence[Message]) -> int:
        """Number of tokens of these messages in the model's template."""
        return self.model.count(messages)

    def recount_memories(self) -> None:
        """Count the tokens of the memories in the prompt again: for another model, they are others."""
        if self.memory is not None and self._memories and self.turns:
            with_memories, without = (self.count(self.visible_messages(memories)) for memories in (True, False))
            self.memory.recalled = replace(self.memory.recalled, tokens=with_memories - without)

    def visible_messages(self, memories: bool = True) -> list[Message]:
        """The messages that are in the prompt, including the last reply, with the memories or without them."""
        turns = self.turns[self.start :] if self.settings.history else self.turns[-1:]
        return self._messages(turns, self._memories if memories else "")

    def tokens(self) -> list[tuple[int, str]]:
        """Ids and texts of the tokens in the prompt, including the last reply."""
        self._require_turns()
        return self.model.tokens(self.visible_messages())

    def prompt_text(self) -> str:
        """The text of the prompt with control tokens, including the last reply."""
        self._require_turns()
        return self.model.prompt_text(self.visible_messages())

    def window_tokens(self, scored: bool = False) -> list[TokenProbability]:
        """The tokens in the prompt, including the last reply; if `scored`, with their probabilities."""
        self._require_turns()
        if scored:
            return self.model.score(self.visible_messages())
        return [TokenProbability(text, None, id=token) for token, text in self.tokens()]

    def tokens_of(self, turn: int | None = None) -> list[TokenProbability]:
        """The tokens of a reply, as they were recorded; if that was without probabilities, they are computed now.

        Those are the tokens of the reply's text, as the model reads it in a prompt: it may have generated others.
        Without probabilities if they were not recorded, and the model is one of a server that does not compute them.
        Raises `BareloopError` if nothing is known of them.
        """
        index = self.index(turn)
        if len(self.turns[index]) < 2:
            raise UsageError(f"message {index + 1} has no reply")
        node, origin = self.tree.node(index), self.model.origin()
        known = node.tokens if node.scored_by in (None, origin) else None
        if known is None or (self.model.can_score and all(token.logprob is None for token in known)):
            known = with_times(score_reply(self.model, self._messages_of(index)), known or ())
            node.tokens, node.scored_by = known, origin
        return known

    def was_scored(self, turn: int | None = None) -> bool:
        """Whether the tokens of a reply are those of its text, computed by `tokens_of`, and not those generated."""
        return self.tree.node(self.index(turn)).scored_by is not None

    def _cut(self, index: int) -> None:
        """End the path before a turn. If that had been dropped, nothing is: what was summarised is of another path."""
        _ = self.tree  # it has the old version
        del self.turns[index:]
        if index < self.start:
            self.start, self.summary = 0, ""

    def _fit(self, high: float = 1.0) -> FittedPrompt:
        """The next prompt. One that ends with the beginning of its reply needs no other reserve than a token."""
        settings, turns, start, budget = self.settings, self.turns, self.start, self.budget
        if not settings.history:
            turns, start = turns[-1:], 0
        if len(turns[-1]) > 1:  # its memories stay as they are
            budget = replace(budget, reserve=1, memories=self.memory.recalled.tokens if self.memory is not None else 0)
        summary, role, memories = self._visible_summary, self.model.system_role, self._memories
        return self._noted(
            fit(settings.system, turns, budget, settings.strategy, self.count, start, summary, role, high, memories)
        )

    def _noted(self, prompt: FittedPrompt) -> FittedPrompt:
        """The same prompt. Memories that did not fit into it are no longer recalled."""
        if self.memory is not None and self._memories != prompt.memories:
            self.memory.recalled = NOTHING
        return prompt

    def _tokens_of_turns(self) -> int:
        """Tokens of the prompt without memories."""
        return self.count(self._messages(self.turns[self.start :]))

    def _messages(self, turns: Sequence[Turn], memories: str = "") -> list[Message]:
        """The messages of a prompt with these turns."""
        return prompt_messages(self.settings.system, turns, self._visible_summary, self.model.system_role, memories)

    def _messages_of(self, index: int) -> list[Message]:
        """The messages up to the reply of a turn, as they may have been in its prompt, as many as fit."""
        in_prompt = self.settings.history and index >= self.start
        first = (self.start if in_prompt else 0) if self.settings.history else index
        summary, role = self.summary if in_prompt else "", self.model.system_role
        has_block = in_prompt and self.turns[index][1].get("memories", []) == self._recalled
        memories = self._memories if has_block else ""

        def messages(first: int) -> list[Message]:
            return prompt_messages(self.settings.system, self.turns[first : index + 1], summary, role, memories)

        candidates = range(first, index)
        first += bisect_left(candidates, True, key=lambda number: self.count(messages(number)) < self.model.limit)
        return messages(first)

    @property
    def _visible_summary(self) -> str:
        return self.summary if self.settings.history else ""

    @property
    def _memories(self) -> str:
        return "" if self.memory is None else self.memory.recalled.block

    @property
    def _recalled(self) -> list[int]:
        """Numbers of the pieces of memory in the prompt."""
        return [] if self.memory is None else self.memory.recalled.ids

    def _require_turns(self) -> None:
        if not self.turns:
            raise UsageError("there are no messages yet")


def remembered(turn: Turn) -> str:
    """What a memory has of a turn: of images only their names. A reply that only repeats itself is left out."""
    reply = turn[1] if len(turn) > 1 else {}
    is_loop = reply.get("finish_reason") == "loop"
    return turn_text(shown(turn[0]["content"]), "" if is_loop else reply.get("content", ""))
