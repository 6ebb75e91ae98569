"""Which part of a conversation goes into the prompt: budget, strategies, eviction. Pure: no model, no torch, no screen.

A conversation is a system prompt and turns; a turn is a user message and the reply to it. Whole turns are evicted,
oldest first, and stay evicted, so that the prompt keeps the prefix whose keys and values are already in the cache.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from engine.runtime.errors import BareloopError, TemplateError

STRATEGIES = ("none", "truncate", "sliding", "summarise")
LOW_WATER = 0.6  # share of the room that `sliding` and `summarise` leave filled when they evict
HIGH_WATER = 0.8  # share of the room at which `summarise` asks for a summary
MAX_SUMMARY = 0.1  # share of the room that a summary may fill
MAX_DEFAULT_RESERVE = 0.25  # share of the window that is reserved for a reply at most, unless the user sets a reserve
SUMMARY_PREFIX = "Summary of the conversation so far: "

Message = Mapping[str, Any]
Turn = Sequence[Message]  # a user message, then the assistant's
Count = Callable[[Sequence[Message]], int]  # messages -> tokens by the model's template; raises if it rejects them


class ContextOverflowError(BareloopError):
    """A message or prompt that cannot be left out is larger than the room for it. Nothing was dropped."""


@dataclass(frozen=True)
class Budget:
    """How many tokens a prompt may have: the window minus the reserve for the reply."""

    window: int
    reserve: int

    @staticmethod
    def of(window: int, max_new_tokens: int, reserve: int | None = None) -> Budget:
        """Reserve room for the whole reply, but at most a quarter of the window; `reserve` overrides that.

        Raises `ContextOverflowError` if the reserve leaves no room for a prompt.
        """
        chosen = min(max_new_tokens, int(window * MAX_DEFAULT_RESERVE)) if reserve is None else reserve
        if not 0 < chosen < window:
            raise ContextOverflowError(f"a reserve of {chosen:,} tokens leaves no room in a window of {window:,}")
        return Budget(window, chosen)

    @property
    def room(self) -> int:
        """Tokens available to the prompt."""
        return self.window - self.reserve


@dataclass(frozen=True)
class FittedPrompt:
    """The messages of the next prompt, and what was dropped to make them fit."""

    messages: list[Message]
    tokens: int
    start: int  # index of the first turn in the prompt
    dropped: int = 0  # turns that were in the previous prompt and are not in this one
    dropped_tokens: int = 0


def prompt_messages(system: str, turns: Sequence[Turn], summary: str = "", fold_system: bool = False) -> list[Message]:
    """The messages of these turns, after the system prompt, which also carries the summary of earlier turns.

    With `fold_system`, for templates that reject a system role, the system text is put in front of the first user
    message.
    """
    text = "\n\n".join(part for part in (system, f"{SUMMARY_PREFIX}{summary}" if summary else "") if part)
    messages: list[Message] = [{key: message[key] for key in ("role", "content")} for turn in turns for message in turn]
    if not text:
        return messages
    if not fold_system or not messages:
        return [{"role": "system", "content": text}, *messages]
    first, *rest = messages
    return [{**first, "content": f"{text}\n\n{first['content']}"}, *rest]


def rejects_system_role(count: Count) -> bool:
    """Whether the chat template raises an error for a system message."""
    try:
        count([{"role": "system", "content": "."}, {"role": "user", "content": "."}])
    except TemplateError:
        return True
    return False


def fit(
    system: str,
    turns: Sequence[Turn],
    budget: Budget,
    strategy: str,
    count: Count,
    start: int = 0,
    summary: str = "",
    fold_system: bool = False,
    high: float = 1.0,
) -> FittedPrompt:
    """Choose which turns from index `start` on go into the prompt. The newest always does.

    `none` never drops a turn; `truncate` drops no more than it must; `sliding` and `summarise` drop until `LOW_WATER`
    of the room is filled, so that most turns drop nothing and the cached prefix stays valid. Dropping begins when the
    prompt exceeds the share `high` of the room.

    Raises `ContextOverflowError` if the newest turn alone does not fit, or with `none`, if the conversation does not.
    """

    def messages(first: int) -> list[Message]:
        return prompt_messages(system, turns[first:], summary, fold_system)

    @cache
    def tokens(first: int) -> int:
        return count(messages(first))

    room, last = budget.room, len(turns) - 1
    total = tokens(start)
    if total <= room * high or (total <= room and start == last):
        return FittedPrompt(messages(start), total, start)
    if tokens(last) > room:
        raise _overflow(system, turns[last], summary, fold_system, budget, count, tokens(last))
    if strategy == "none":
        raise ContextOverflowError(
            f"the conversation has {total:,} tokens, and there is room for {room:,} "
            f"({budget.window:,} minus {budget.reserve:,} for the reply); start a new conversation, or use "
            "/strategy sliding"
        )
    target = room if strategy == "truncate" else int(room * LOW_WATER)
    candidates = range(start + 1, last)
    index = bisect_left(candidates, True, key=lambda first: tokens(first) <= target)
    first = candidates[index] if index < len(candidates) else last
    return FittedPrompt(messages(first), tokens(first), first, first - start, total - tokens(first))


def wants_summary(tokens: int, turns_in_prompt: int, budget: Budget, strategy: str) -> bool:
    """Whether to ask for a summary now: the room is nearly full, and there is an older turn that could be dropped.

    `tokens` counts the prompt before anything is dropped.
    """
    return strategy == "summarise" and turns_in_prompt > 1 and tokens > budget.room * HIGH_WATER


def summary_limit(budget: Budget) -> int:
    """Maximum number of tokens of a summary."""
    return max(1, int(budget.room * MAX_SUMMARY))


def _overflow(
    system: str, turn: Turn, summary: str, fold_system: bool, budget: Budget, count: Count, tokens: int
) -> ContextOverflowError:
    """The error that says what is too long: the message, the system prompt before it, or a reply to be continued."""
    empty = [{**turn[0], "content": ""}]
    pinned = count(prompt_messages(system, [empty], summary, fold_system))
    limits = f"there is room for {budget.room:,} ({budget.window:,} minus {budget.reserve:,} for the reply)"
    if pinned > budget.room:
        return ContextOverflowError(f"the system prompt has {pinned:,} tokens, and {limits}; shorten it with /system")
    if len(turn) > 1:  # a reply that is to be continued
        return ContextOverflowError(
            f"the reply fills the window: it ends at token {tokens:,} of {budget.window:,}, so there is no room to "
            "continue it; ask for the rest in a new message, or use a larger window (--ctx-size)"
        )
    return ContextOverflowError(
        f"the message has {tokens - pinned:,} tokens, the system prompt and the template add {pinned:,}, and {limits}; "
        "shorten the message"
    )
