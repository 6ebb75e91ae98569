"""What of a conversation the model is shown: budget, strategies, eviction. Pure: no model, no torch, no screen.

A conversation is a system prompt and turns; a turn is a user's message and what answers it. Whole turns are
evicted, oldest first, and stay evicted, so that the prefix that the model has already read stays the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from engine.runtime.errors import BareloopError, TemplateError

STRATEGIES = ("none", "truncate", "sliding", "summarise")
LOW_WATER = 0.6  # of the room: how full `sliding` and `summarise` leave it when they evict
HIGH_WATER = 0.8  # of the room: when `summarise` asks for a summary
SUMMARY_SHARE = 0.1  # of the room: the longest summary
RESERVE_SHARE = 0.25  # of the window: what is kept for a reply at most, unless the user says otherwise
EARLIER = "Summary of the conversation so far: "

Message = Mapping[str, Any]
Turn = Sequence[Message]  # a user's message, then the assistant's
Count = Callable[[Sequence[Message]], int]  # messages -> tokens, by the model's own template; may refuse them


class ContextOverflowError(BareloopError):
    """Something that must be shown is larger than the room for it. Nothing was dropped."""


@dataclass(frozen=True)
class Budget:
    """The tokens that a prompt may have: the window's, less those reserved for the reply."""

    window: int
    reserve: int

    @staticmethod
    def of(window: int, max_new_tokens: int, reserve: int | None = None) -> Budget:
        """Room for the whole reply, at most a quarter of the window; or as much as the user says."""
        chosen = min(max_new_tokens, int(window * RESERVE_SHARE)) if reserve is None else reserve
        if not 0 < chosen < window:
            raise ContextOverflowError(f"a reserve of {chosen:,} tokens leaves no room in a window of {window:,}")
        return Budget(window, chosen)

    @property
    def room(self) -> int:
        return self.window - self.reserve


@dataclass(frozen=True)
class Fitted:
    """What the model is shown next."""

    messages: list[Message]
    tokens: int
    start: int  # the first turn that is shown
    dropped: int = 0  # turns that were shown the last time and no longer are
    dropped_tokens: int = 0


def shown(system: str, turns: Sequence[Turn], summary: str = "", folds: bool = False) -> list[Message]:
    """The messages of these turns under their system prompt, the summary of earlier ones in it.

    With `folds`, for templates that refuse a system role, its text begins the first user's message.
    """
    text = "\n\n".join(part for part in (system, f"{EARLIER}{summary}" if summary else "") if part)
    messages: list[Message] = [{key: message[key] for key in ("role", "content")} for turn in turns for message in turn]
    if not text:
        return messages
    if not folds or not messages:
        return [{"role": "system", "content": text}, *messages]
    first, *rest = messages
    return [{**first, "content": f"{text}\n\n{first['content']}"}, *rest]


def folds_system(count: Count) -> bool:
    """Whether a template refuses a system role."""
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
    folds: bool = False,
    high: float = 1.0,
) -> Fitted:
    """Choose the turns from `start` on that fit, the newest among them, and say what was dropped.

    `none` never drops; `truncate` drops no more than it must; `sliding` and `summarise` drop down to
    `LOW_WATER`, so that most turns drop nothing and the model need not read the rest again. They begin to when
    the share `high` of the room is exceeded. Raises `ContextOverflowError`.
    """

    def messages(first: int) -> list[Message]:
        return shown(system, turns[first:], summary, folds)

    @cache
    def tokens(first: int) -> int:
        return count(messages(first))

    room, last = budget.room, len(turns) - 1
    before = tokens(start)
    if before <= room * high or (before <= room and start == last):
        return Fitted(messages(start), before, start)
    if tokens(last) > room:
        raise _too_long(system, turns[last], summary, folds, budget, count, tokens(last))
    if strategy == "none":
        raise ContextOverflowError(
            f"the conversation has {before:,} tokens, and there is room for {room:,} "
            f"({budget.window:,} less {budget.reserve:,} for the reply); use /clear, or /strategy sliding"
        )
    target = room if strategy == "truncate" else int(room * LOW_WATER)
    candidates = range(start + 1, last)
    found = bisect_left(candidates, True, key=lambda first: tokens(first) <= target)
    first = candidates[found] if found < len(candidates) else last
    return Fitted(messages(first), tokens(first), first, first - start, before - tokens(first))


def wants_summary(tokens: int, shown_turns: int, budget: Budget, strategy: str) -> bool:
    """Whether it is time to ask for a summary: the room fills, and there is more than the newest turn to drop.

    `tokens` counts all that would be shown if nothing were dropped.
    """
    return strategy == "summarise" and shown_turns > 1 and tokens > budget.room * HIGH_WATER


def summary_limit(budget: Budget) -> int:
    """The most tokens of a summary."""
    return max(1, int(budget.room * SUMMARY_SHARE))


def _too_long(
    system: str, turn: Turn, summary: str, folds: bool, budget: Budget, count: Count, tokens: int
) -> ContextOverflowError:
    """Whose fault it is: the message's, or what is pinned above it."""
    empty = [{**turn[0], "content": ""}]
    pinned = count(shown(system, [empty], summary, folds))
    limits = f"there is room for {budget.room:,} ({budget.window:,} less {budget.reserve:,} for the reply)"
    if pinned > budget.room:
        return ContextOverflowError(f"the system prompt has {pinned:,} tokens, and {limits}; shorten it with /system")
    return ContextOverflowError(
        f"the message has {tokens - pinned:,} tokens beside {pinned:,} of the system prompt and template, and {limits}"
    )
