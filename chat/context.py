"""Which part of a conversation goes into the prompt: budget, strategies, eviction. Pure: no model, no torch, no screen.

A conversation is a system prompt and turns; a turn is a user message and the reply to it. Whole turns are evicted,
oldest first, and stay evicted, so that the prompt keeps the prefix whose keys and values are already in the cache.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from chat.images import count_images, text_of, with_text
from engine.runtime.errors import BareloopError, TemplateError
from engine.runtime.wording import plural

STRATEGIES = ("none", "truncate", "sliding", "summarise")
LOW_WATER = 0.6  # share of the room that `sliding` and `summarise` leave filled when they evict
HIGH_WATER = 0.8  # share of the room at which `summarise` asks for a summary
MAX_SUMMARY = 0.1  # share of the room that a summary may fill
MAX_DEFAULT_RESERVE = 0.25  # share of the window that is reserved for a reply at most, unless the user sets a reserve
SUMMARY_PREFIX = "Summary of the conversation so far: "
MEMORY_SHARE = 1 / 8  # of the room, set aside for memories while memory is on
LEAST_MEMORIES = 128  # tokens: about two short turns, with their dates
MAX_LEAST_SHARE = 1 / 3  # of the room that this least may be

Message = Mapping[str, Any]
Turn = Sequence[Message]  # a user message, then the assistant's
Count = Callable[[Sequence[Message]], int]  # messages -> tokens by the model's template; raises if it rejects them
SystemRole = Literal["none", "first", "anywhere"]  # where a template takes a system message; see `system_role`


class ContextOverflowError(BareloopError):
    """A message or prompt that cannot be left out is larger than the room for it. Nothing was dropped."""


@dataclass(frozen=True)
class Budget:
    """How many tokens a prompt may have: the window minus the reserve for the reply."""

    window: int
    reserve: int
    memories: int = 0  # tokens of the room that are set aside for memories

    @staticmethod
    def of(window: int, max_new_tokens: int, reserve: int | None = None, memory_share: float = 0.0) -> Budget:
        """Reserve room for the whole reply, but at most a quarter of the window; `reserve` overrides that.

        `memory_share`: of the room, for memories; in a small window at least `LEAST_MEMORIES`, up to a third of the
        room. Raises `ContextOverflowError` if the reserve leaves no room for a prompt.
        """
        chosen = min(max_new_tokens, int(window * MAX_DEFAULT_RESERVE)) if reserve is None else reserve
        if not 0 < chosen < window:
            raise ContextOverflowError(f"a reserve of {chosen:,} tokens leaves no room in a window of {window:,}")
        room, memories = window - chosen, 0
        if memory_share:
            memories = int(max(room * memory_share, min(LEAST_MEMORIES, room * MAX_LEAST_SHARE)))
        return Budget(window, chosen, memories)

    @property
    def room(self) -> int:
        """Tokens available to the prompt."""
        return self.window - self.reserve

    @property
    def without_memories(self) -> Budget:
        """The budget of everything but the memories."""
        return Budget(self.window, self.reserve + self.memories)


@dataclass(frozen=True)
class FittedPrompt:
    """The messages of the next prompt, and what was dropped to make them fit."""

    messages: list[Message]
    tokens: int
    start: int  # index of the first turn in the prompt
    dropped: int = 0  # turns that were in the previous prompt and are not in this one
    dropped_tokens: int = 0
    dropped_images: int = 0  # of these turns
    memories: str = ""  # the block of memories in the prompt


def prompt_messages(
    system: str,
    turns: Sequence[Turn],
    summary: str = "",
    system_role: SystemRole = "first",
    memories: str = "",
) -> list[Message]:
    """The messages of these turns, after the system prompt, which also carries the summary of earlier turns.

    `memories` stand right before the newest message, so that all that is cached before it stays valid when they change:
    in a system message of their own, or in front of the newest message's text, if the template does not take a system
    message there, or this one would be the first: many templates add a system prompt of their own if there is none.
    Likewise the system text is put in front of the first message, if the template takes no system message at all.
    """
    text = "\n\n".join(part for part in (system, f"{SUMMARY_PREFIX}{summary}" if summary else "") if part)
    messages: list[Message] = [{key: message[key] for key in ("role", "content")} for turn in turns for message in turn]
    if memories and messages:
        newest = len(messages) - len(turns[-1])
        if system_role == "anywhere" and (text or newest):
            messages.insert(newest, _system_message(memories))
        else:
            messages[newest] = _with_text_before(messages[newest], memories)
    if not text:
        return messages
    if system_role == "none" and messages:
        return [_with_text_before(messages[0], text), *messages[1:]]
    return [_system_message(text), *messages]


def system_role(count: Count, text: Callable[[Sequence[Message]], str]) -> SystemRole:
    """Where a chat template takes a system message: nowhere, as the first message, or also before any user message.

    `text`: the text of a prompt, with control tokens; raises as `count`. Templates may reject a later system message,
    leave it out, move it, or write it twice, so the texts with and without one are compared: it has to be inserted,
    once, between the messages around it, which stay as they are.
    """
    question, reply = {"role": "user", "content": "alpha"}, {"role": "assistant", "content": "bravo"}
    first, inserted, newest = _system_message("charlie"), _system_message("delta"), {"role": "user", "content": "echo"}
    try:
        count([first, newest])
    except TemplateError:
        return "none"
    try:
        for before in ([first], [question, reply], [first, question, reply]):
            whole, without = text([*before, inserted, newest]), text([*before, newest])
            places = [whole.find(message["content"]) for message in (before[-1], inserted, newest)]
            start, end = (_common_prefix(whole[::step], without[::step]) for step in (1, -1))
            is_between = -1 < places[0] < places[1] < places[2] and whole.count(inserted["content"]) == 1
            if not is_between or start + end < len(without):
                return "first"
    except TemplateError:
        return "first"
    return "anywhere"


def fit(
    system: str,
    turns: Sequence[Turn],
    budget: Budget,
    strategy: str,
    count: Count,
    start: int = 0,
    summary: str = "",
    system_role: SystemRole = "first",
    high: float = 1.0,
    memories: str = "",
) -> FittedPrompt:
    """Choose which turns from index `start` on go into the prompt. The newest always does.

    A budget with tokens for memories keeps them free of turns, however many memories there are, so that no turn is
    dropped because others are recalled. Only what must fit may use them; `memories` that then do not fit are left out.

    `none` never drops a turn; `truncate` drops no more than it must; `sliding` and `summarise` drop until `LOW_WATER`
    of the room is filled, so that most turns drop nothing and the cached prefix stays valid. Dropping begins when the
    prompt exceeds the share `high` of the room.

    Raises `ContextOverflowError` if the newest turn alone does not fit, or with `none`, if the conversation does not.
    """

    if budget.memories:
        try:
            own = budget.without_memories
            if own.room < 1:
                raise ContextOverflowError("the memories would fill the room")
            fitted = fit(system, turns, own, strategy, count, start, summary, system_role, high)
        except ContextOverflowError:
            budget = replace(budget, memories=0)
            fitted = fit(system, turns, budget, strategy, count, start, summary, system_role, high)
        return place_memories(fitted, memories, system, turns, budget, count, summary, system_role)

    def messages(first: int) -> list[Message]:
        return prompt_messages(system, turns[first:], summary, system_role)

    @cache
    def tokens(first: int) -> int:
        return count(messages(first))

    room, last = budget.room, len(turns) - 1
    total = tokens(start)
    if total <= room * high or (total <= room and start == last):
        return FittedPrompt(messages(start), total, start)
    if tokens(last) > room:
        raise _overflow(system, turns[last], summary, system_role, budget, count, tokens(last))
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
    images = sum(map(count_images, turns[start:first]))
    return FittedPrompt(messages(first), tokens(first), first, first - start, total - tokens(first), images)


def place_memories(
    fitted: FittedPrompt,
    memories: str,
    system: str,
    turns: Sequence[Turn],
    budget: Budget,
    count: Count,
    summary: str = "",
    system_role: SystemRole = "first",
) -> FittedPrompt:
    """Put a block of memories into a prompt, in place of the one that it has; none if it does not fit into the room.

    The turns stay as they are. The arguments after `memories` are those of `fit`.
    """
    for block in dict.fromkeys((memories, "")):
        messages = prompt_messages(system, turns[fitted.start :], summary, system_role, block)
        tokens = count(messages)
        if not block or tokens <= budget.room:
            break
    return replace(fitted, messages=messages, tokens=tokens, memories=block)


def _system_message(text: str) -> Message:
    return {"role": "system", "content": text}


def _with_text_before(message: Message, text: str) -> Message:
    """The same message with a text in front of its own, after its images."""
    content = message["content"]
    return {**message, "content": with_text(content, f"{text}\n\n{text_of(content)}")}


def _common_prefix(left: str, right: str) -> int:
    """Length of the longest common prefix."""
    pairs = zip(left, right, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)))


def wants_summary(tokens: int, turns_in_prompt: int, budget: Budget, strategy: str) -> bool:
    """Whether to ask for a summary now: the room is nearly full, and there is an older turn that could be dropped.

    `tokens` counts the prompt without memories, before anything is dropped.
    """
    room = budget.without_memories.room
    return strategy == "summarise" and turns_in_prompt > 1 and tokens > room * HIGH_WATER


def summary_limit(budget: Budget) -> int:
    """Maximum number of tokens of a summary."""
    return max(1, int(budget.room * MAX_SUMMARY))


def _overflow(
    system: str, turn: Turn, summary: str, system_role: SystemRole, budget: Budget, count: Count, tokens: int
) -> ContextOverflowError:
    """The error that says what is too long: the message, the system prompt before it, or a reply to be continued."""
    empty = [{**turn[0], "content": ""}]
    pinned = count(prompt_messages(system, [empty], summary, system_role))
    limits = f"there is room for {budget.room:,} ({budget.window:,} minus {budget.reserve:,} for the reply)"
    if pinned > budget.room:
        return ContextOverflowError(f"the system prompt has {pinned:,} tokens, and {limits}; shorten it with /system")
    if len(turn) > 1:  # a reply that is to be continued
        return ContextOverflowError(
            f"the reply fills the window: it ends at token {tokens:,} of {budget.window:,}, so there is no room to "
            "continue it; ask for the rest in a new message, or use a larger window (--ctx-size)"
        )
    images, remedy = count_images(turn), "shorten the message"
    if images:
        remedy += ", leave out an image, or use a larger window (--ctx-size)"
    return ContextOverflowError(
        f"the message has {tokens - pinned:,} tokens{' with ' + plural(images, 'image') if images else ''}, the system "
        f"prompt and the template add {pinned:,}, and {limits}; {remedy}"
    )
