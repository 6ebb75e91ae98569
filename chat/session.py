"""A conversation as a state machine: the turns, the prompt made of them, the replies. No input or output.

    session = Session(LocalModel(llm), Settings(system="Be kind."))
    for event in session.send("Hi!"):       # Notice, Piece, …, finally a Reply
        ...

It may be abandoned at any event (Ctrl-C, a closed window): the part of the reply so far is kept, marked as partial.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from chat.context import (
    HIGH_WATER,
    SUMMARY_PREFIX,
    Budget,
    FittedPrompt,
    Message,
    fit,
    prompt_messages,
    summary_limit,
    wants_summary,
)
from chat.events import ChatEvents, Notice, Piece, Reply, Settings
from chat.models.interface import ChatModel, Generation, PromptTooLongError, ReplyEvent
from engine.decoding.params import SamplingParams
from engine.runtime.errors import BareloopError, UsageError, is_out_of_memory
from engine.text.reasoning import ReasoningSplitter, split

SUMMARY_REQUEST = "Summarise our conversation so far in one line. Keep names and facts."
LOOP_TOKENS, LOOP_REPEATS = 48, 4  # a reply is stuck if its last 48 tokens repeat one run at least four times
LOOP_CHARACTERS = 400  # the same, where a server does not tell the tokens


@dataclass
class Statistics:
    """Counters for /stats."""

    replies: list[Reply] = field(default_factory=list)
    evictions: int = 0
    dropped_turns: int = 0
    dropped_tokens: int = 0
    summaries: int = 0
    summary_read: int = 0  # prompt tokens computed for summary requests


class Session:
    """One conversation with one model."""

    def __init__(self, model: ChatModel, settings: Settings | None = None, now: datetime | None = None) -> None:
        self.settings = settings or Settings()
        self.now = now or datetime.now()  # the date that the template prints; fixed, so that the prefix stays cached
        self.model = model.at(self.now)
        self.turns: list[list[dict[str, Any]]] = []  # the whole conversation; evicted turns stay in it
        self.start = 0  # index of the first turn in the prompt
        self.summary = ""  # of the turns before it
        self.statistics = Statistics()

    @property
    def warnings(self) -> list[Notice]:
        """What a user should know before the first message."""
        return [Notice("warning", text) for text in self.model.warnings(self.settings.window)]

    @property
    def budget(self) -> Budget:
        """Budget of the next prompt. Raises `ContextOverflowError` if the reserve leaves no room."""
        window = min(self.model.limit, self.settings.window or self.model.limit)
        return Budget.of(window, self.params.max_new_tokens, self.settings.reserve)

    @property
    def params(self) -> SamplingParams:
        """The model's own defaults, as far as they are known, overridden by the user's settings."""
        return SamplingParams(**{**(self.model.defaults or {}), **self.settings.sampling})

    def knows(self, name: str) -> bool:
        """Whether `params` has the sampling parameter that the model uses, and not only the server has it."""
        return self.model.defaults is not None or name in (*self.settings.sampling, "max_new_tokens")

    def count(self, messages: Sequence[Message]) -> int:
        """Number of tokens of these messages in the model's template."""
        return self.model.count(messages)

    def send(self, text: str) -> ChatEvents:
        """Send a message and get a reply. Raises, and changes nothing, if it cannot fit into the window."""
        if not text.strip():
            raise UsageError("the message is empty")
        yield from self._add_turn([{"role": "user", "content": text}])

    def retry(self) -> ChatEvents:
        """Get another reply to the last message."""
        self._require_turns()
        if self.knows("temperature") and self.params.temperature == 0:
            yield Notice("info", "temperature is 0, so the reply will be the same; /set temperature 0.7 changes that")
        yield from self.edit(self.turns[-1][0]["content"])

    def edit(self, text: str) -> ChatEvents:
        """Replace the last message, and get a reply to the new one."""
        self._require_turns()
        if not text.strip():
            raise UsageError("the message is empty")
        replaced = self.turns.pop()
        turns_before = len(self.turns)
        try:
            yield from self._add_turn([{"role": "user", "content": text}])
        finally:
            if len(self.turns) == turns_before:  # there was no reply: restore the old turn
                self.turns.append(replaced)

    def proceed(self) -> ChatEvents:
        """Continue the last reply where it was cut off."""
        self._require_turns()
        if len(self.turns[-1]) < 2:
            raise UsageError("there is no reply to continue; use /retry")
        reply = self.turns[-1][1]
        if not reply.get("finish_reason"):
            raise UsageError("the reply is complete; send a message, or /retry")
        if not reply["content"]:
            raise UsageError("the reply was stopped before its first word; use /retry")
        sent = time.perf_counter()
        yield from self._reply(self._fit(), sent, self.turns[-1][1]["content"])

    def undo(self) -> str:
        """Remove the last turn, and return its message."""
        self._require_turns()
        removed = self.turns.pop()
        self.start = min(self.start, max(0, len(self.turns) - 1))
        return str(removed[0]["content"])

    def clear(self) -> None:
        """Start over with the same settings and the present date."""
        self.turns, self.start, self.summary = [], 0, ""
        self.statistics = Statistics()
        self.now = datetime.now()
        self.model = self.model.at(self.now)

    def configure(self, **changes: Any) -> None:
        """Change fields of `settings`. Raises, and changes nothing, if a value is invalid."""
        before = self.settings
        self.settings = replace(before, **changes)
        try:
            _ = self.budget
        except BareloopError:
            self.settings = before
            raise

    def visible_messages(self) -> list[Message]:
        """The messages that are in the prompt, including the last reply."""
        turns = self.turns[self.start :] if self.settings.history else self.turns[-1:]
        return prompt_messages(self.settings.system, turns, self._visible_summary, self.model.rejects_system_role)

    def tokens(self) -> list[tuple[int, str]]:
        """Ids and texts of the tokens in the prompt, including the last reply."""
        self._require_turns()
        return self.model.tokens(self.visible_messages())

    def prompt_text(self) -> str:
        """The text of the prompt with control tokens, including the last reply."""
        self._require_turns()
        return self.model.prompt_text(self.visible_messages())

    @property
    def _visible_summary(self) -> str:
        return self.summary if self.settings.history else ""

    def _require_turns(self) -> None:
        if not self.turns:
            raise UsageError("there are no messages yet")

    def _add_turn(self, turn: list[dict[str, Any]]) -> ChatEvents:
        sent = time.perf_counter()
        self.turns.append(turn)
        try:
            prompt = self._fit()
            if self.settings.history and wants_summary(
                self.count(self.visible_messages()), len(self.turns) - self.start, self.budget, self.settings.strategy
            ):
                yield from self._summarise()
                prompt = self._fit(HIGH_WATER)
            yield from self._reply(prompt, sent)
        finally:
            if len(turn) == 1:  # there was no reply: keep only whole turns
                self.turns.pop()

    def _drop(self, prompt: FittedPrompt) -> Notice:
        self.start = prompt.start
        self.statistics.evictions += 1
        self.statistics.dropped_turns += prompt.dropped
        self.statistics.dropped_tokens += prompt.dropped_tokens
        turns = f"{prompt.dropped} turn{'s' * (prompt.dropped > 1)}"
        filled = prompt.tokens / self.budget.window
        return Notice("dropped", f"dropped {turns}, {prompt.dropped_tokens:,} tokens; window {filled:.0%} full")

    def _fit(self, high: float = 1.0) -> FittedPrompt:
        settings, turns, start = self.settings, self.turns, self.start
        if not settings.history:
            turns, start = turns[-1:], 0
        summary, fold = self._visible_summary, self.model.rejects_system_role
        return fit(settings.system, turns, self.budget, settings.strategy, self.count, start, summary, fold, high)

    def _reply(self, prompt: FittedPrompt, sent: float, continued: str = "") -> ChatEvents:
        """Generate the reply. However this generator ends, the text so far is kept.

        `sent` is when the message was sent (`time.perf_counter`); `continued` is the reply's text so far.
        """
        turn = self.turns[-1]
        generation = yield from self._generate(prompt, bool(continued))
        finish = "cancelled"
        splitter = ReasoningSplitter(generation.in_reasoning)
        events: list[ReplyEvent] = []
        first = last = time.perf_counter()
        try:
            for event in generation:
                last = time.perf_counter()
                first = first if events else last
                events.append(event)
                if event.finish_reason:
                    finish = event.finish_reason
                elif _repeats(events):
                    finish = "loop"
                text = splitter.push(event.text) + (splitter.flush() if finish != "cancelled" else "")
                if text and splitter.reasoning and splitter.answer == text:
                    yield Notice("reasoning", f"thought for {last - first:.1f} s; /reasoning shows it")
                if text:
                    yield Piece(text)
                if finish == "loop":
                    yield Notice("loop", "stopped: the reply repeats itself; try /set temperature 0.7, then /retry")
                    break
            if splitter.reasoning and not splitter.answer:
                yield Notice("reasoning", "the reply ended inside its reasoning; /reasoning shows it")
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise BareloopError("out of memory; the conversation is kept; use /clear or a smaller model") from error
            raise
        finally:
            generation.cancel()
            splitter.flush()
            before = turn[1].get("reasoning", "") if continued else ""
            reasoning, answer = f"{before}\n{splitter.reasoning}".strip(), continued + splitter.answer
            if answer or reasoning or finish != "cancelled":
                marks = {"reasoning": reasoning, "finish_reason": "" if finish == "stop" else finish}
                nonempty = {key: value for key, value in marks.items() if value}
                turn[1:] = [{"role": "assistant", "content": answer, **nonempty}]
            reply = Reply(
                turn=len(self.turns),
                text=answer,
                reasoning=reasoning,
                finish_reason=finish,
                prompt_tokens=generation.prompt_tokens,
                completion_tokens=generation.completion_tokens,
                cached_tokens=generation.cached_tokens,
                window=self.budget.window,
                ttft=first - sent,
                seconds=last - first,
                events=events,
            )
            if events:
                self.statistics.replies.append(reply)
        yield reply

    def _generate(self, prompt: FittedPrompt, continues: bool) -> Generator[Notice, None, Generation]:
        """Submit the prompt. If a server finds it too long, drop more turns, as long as there are any."""
        while True:
            if prompt.dropped:
                yield self._drop(prompt)
            limit = max(1, min(self.params.max_new_tokens, self.budget.window - prompt.tokens))
            sampling = {**self.settings.sampling, "max_new_tokens": limit}
            try:
                return self.model.generate(prompt.messages, sampling, continues)
            except PromptTooLongError as error:
                yield Notice("warning", str(error))
                prompt = self._fit()

    def _summarise(self) -> Iterator[Notice]:
        """Ask the model for a summary. The request is appended to the cached prompt, so only it is computed."""
        request = [[{"role": "user", "content": SUMMARY_REQUEST}]]
        turns = [*self.turns[self.start : -1], *request]
        messages = prompt_messages(self.settings.system, turns, self.summary, self.model.rejects_system_role)
        limit = summary_limit(self.budget)
        if self.count(messages) + limit > self.budget.window:
            yield Notice("warning", "no room to ask for a summary; old turns are dropped without one")
            return
        sampling = {**self.settings.sampling, "temperature": 0.0, "max_new_tokens": limit}
        try:
            reply = self.model.generate(messages, sampling, False)
            try:
                text = "".join(event.text for event in reply)
            finally:
                reply.cancel()
        except BareloopError as error:
            yield Notice("warning", f"no summary, so old turns are dropped without one: {error}")
            return
        self.statistics.summary_read += reply.prompt_tokens - reply.cached_tokens
        summary = split(text)[1].strip().removeprefix(SUMMARY_PREFIX).strip()
        if not summary:
            yield Notice("warning", "the summary was empty; old turns are dropped without one")
            return
        self.summary = summary
        self.statistics.summaries += 1
        yield Notice("summary", f"summary of the dropped turns: {summary}")


def is_stuck(reply: Sequence[Any], length: int = LOOP_TOKENS) -> bool:
    """Whether the last `length` tokens, or characters, repeat one run at least `LOOP_REPEATS` times."""
    tail = reply[-length:]
    if len(tail) < length:
        return False
    return any(tail[period:] == tail[:-period] for period in range(1, length // LOOP_REPEATS + 1))


def _repeats(events: Sequence[ReplyEvent]) -> bool:
    """Whether a reply is stuck, by its tokens, or by its text if they are not known."""
    ids = [event.token_id for event in events[-LOOP_TOKENS:]]
    if None not in ids:
        return is_stuck(ids)
    return is_stuck("".join(event.text for event in events[-LOOP_CHARACTERS:]), LOOP_CHARACTERS)
