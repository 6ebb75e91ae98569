"""A conversation as a state machine: what was said, what the model is shown, how it answers. No input, no output.

    session = Session(llm, Settings(system="Be kind."))
    for event in session.send("Hi!"):       # Notice, Piece, …, at last a Reply
        ...

It may be left at any event (Ctrl-C, a closed window): what was answered so far stays, marked as partial.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from chat.context import (
    EARLIER,
    HIGH_WATER,
    Budget,
    Fitted,
    Message,
    fit,
    folds_system,
    shown,
    summary_limit,
    wants_summary,
)
from chat.events import Answer, Notice, Piece, Reply, Settings
from chat.plain import PlainTemplate
from chat.reasoning import OPEN, Reasoning, split
from engine.decoding.loop import Event
from engine.decoding.sampling import SamplingParams, defaults
from engine.llm import LLM
from engine.runtime.errors import BareloopError, UsageError, is_out_of_memory
from engine.text.chat_template import ChatTemplate

SUMMARY_REQUEST = "Summarise our conversation so far in one line. Keep names and facts."
LOOP_TOKENS, LOOP_TIMES = 48, 4  # a reply that ends in so many tokens of one repeated run, so many times, is stuck


@dataclass
class Statistics:
    """What /stats adds up."""

    replies: list[Reply] = field(default_factory=list)
    evictions: int = 0
    dropped_turns: int = 0
    dropped_tokens: int = 0
    summaries: int = 0
    summary_read: int = 0  # prompt tokens that asking for them took


class Session:
    """One conversation with one model."""

    def __init__(self, llm: LLM, settings: Settings | None = None, now: datetime | None = None) -> None:
        self.llm = llm
        self.settings = settings or Settings()
        self.now = now or datetime.now()  # what a template prints as the date, frozen
        self.turns: list[list[dict[str, Any]]] = []  # all that was said; nothing is ever taken out to make room
        self.start = 0  # the first turn that is still shown
        self.summary = ""  # of the turns before it
        self.statistics = Statistics()
        self.limit = llm.affordable_length()  # tokens
        self.template = _template(llm, self.now)
        self._encoded: tuple[Sequence[Message], list[int]] | None = None
        self.folds = folds_system(self.count)
        self.sequence = llm.sequence()

    @property
    def warnings(self) -> list[Notice]:
        """What a user should know before the first message."""
        found = []
        if isinstance(self.template, PlainTemplate):
            found.append("a base model, without a chat template: it continues a play of User and Assistant")
        wanted, most = self.settings.window or self.llm.max_length, self.llm.max_length
        if self.limit < min(wanted, most):
            found.append(
                f"memory holds a window of {self.limit:,} tokens here, {min(wanted, most):,} were wanted; "
                "a smaller model or dtype leaves room for more"
            )
        elif wanted > most:
            found.append(f"the model's window holds {most:,} tokens, not {wanted:,}")
        return [Notice("warning", text) for text in found]

    @property
    def budget(self) -> Budget:
        """Of the next prompt; raises where the reserve leaves no room."""
        window = min(self.limit, self.settings.window or self.limit)
        return Budget.of(window, self.params.max_new_tokens, self.settings.reserve)

    @property
    def params(self) -> SamplingParams:
        """The model's own defaults, the user's settings over them."""
        params = SamplingParams(**(defaults(self.llm.default_params) | self.settings.sampling))
        if isinstance(self.template, PlainTemplate):
            params = replace(params, stop=(*params.stop, *PlainTemplate.STOP))
        return params

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of these messages as the model reads them."""
        return len(self._encode(messages))

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        """Their ids; what was counted last is what is shown next."""
        if self._encoded is None or self._encoded[0] != messages:
            self._encoded = (messages, self.template.encode(messages))
        return self._encoded[1]

    def send(self, text: str) -> Answer:
        """Say something and get a reply. Where it cannot fit, this raises and nothing has changed."""
        if not text.strip():
            raise UsageError("the message is empty")
        yield from self._take([{"role": "user", "content": text}])

    def retry(self) -> Answer:
        """Another reply to the last message."""
        self._check_said()
        if self.params.temperature == 0:
            yield Notice("info", "greedy: the same reply comes again; /set temperature 0.7 changes that")
        yield from self.edit(self.turns[-1][0]["content"])

    def edit(self, text: str) -> Answer:
        """Say the last message differently, and get a reply to that."""
        self._check_said()
        if not text.strip():
            raise UsageError("the message is empty")
        said = self.turns.pop()
        others = len(self.turns)
        try:
            yield from self._take([{"role": "user", "content": text}])
        finally:
            if len(self.turns) == others:  # nothing came instead
                self.turns.append(said)

    def proceed(self) -> Answer:
        """Go on with the last reply, where it was cut off."""
        self._check_said()
        if len(self.turns[-1]) < 2:
            raise UsageError("there is no reply to continue; use /retry")
        reply = self.turns[-1][1]
        if not reply.get("finish_reason"):
            raise UsageError("the reply is complete; say something, or /retry")
        if not reply["content"]:
            raise UsageError("the reply was cut before it said anything; use /retry")
        asked = time.perf_counter()
        yield from self._answer(self._fit(), asked, self.turns[-1][1]["content"])

    def undo(self) -> str:
        """Take the last turn back, and return its message."""
        self._check_said()
        said = self.turns.pop()
        self.start = min(self.start, max(0, len(self.turns) - 1))
        return str(said[0]["content"])

    def clear(self) -> None:
        """Begin anew, with the same settings."""
        self.turns, self.start, self.summary = [], 0, ""
        self.statistics = Statistics()

    def configure(self, **changes: Any) -> None:
        """Change settings; raises, and changes nothing, where they make no sense."""
        before = self.settings
        self.settings = replace(before, **changes)
        try:
            _ = self.budget
        except BareloopError:
            self.settings = before
            raise

    def shown(self) -> list[Message]:
        """What the model has been shown of the conversation, the last reply included."""
        turns = self.turns[self.start :] if self.settings.history else self.turns[-1:]
        return shown(self.settings.system, turns, self._summary, self.folds)

    def tokens(self) -> list[tuple[int, str]]:
        """The ids that the model has been shown, and what each stands for."""
        self._check_said()
        ids = self._encode(self.shown())
        return [(number, self.llm.tokenizer.decode([number], skip_special_tokens=False)) for number in ids]

    @property
    def _summary(self) -> str:
        return self.summary if self.settings.history else ""

    def _check_said(self) -> None:
        if not self.turns:
            raise UsageError("nothing has been said yet")

    def _take(self, turn: list[dict[str, Any]]) -> Answer:
        asked = time.perf_counter()
        self.turns.append(turn)
        try:
            fitted = self._fit()
            if self.settings.history and wants_summary(
                self.count(self.shown()), len(self.turns) - self.start, self.budget, self.settings.strategy
            ):
                yield from self._summarise()
                fitted = self._fit(HIGH_WATER)
            yield from self._answer(fitted, asked)
        finally:
            if len(turn) == 1:  # nothing was answered: the conversation stays one of whole turns
                self.turns.pop()

    def _drop(self, fitted: Fitted) -> Notice:
        self.start = fitted.start
        self.statistics.evictions += 1
        self.statistics.dropped_turns += fitted.dropped
        self.statistics.dropped_tokens += fitted.dropped_tokens
        turns = f"{fitted.dropped} turn{'s' * (fitted.dropped > 1)}"
        share = fitted.tokens / self.budget.window
        return Notice("dropped", f"dropped {turns}, {fitted.dropped_tokens:,} tokens; {share:.0%} full")

    def _fit(self, high: float = 1.0) -> Fitted:
        settings, turns, start = self.settings, self.turns, self.start
        if not settings.history:
            turns, start = turns[-1:], 0
        return fit(
            settings.system, turns, self.budget, settings.strategy, self.count, start, self._summary, self.folds, high
        )

    def _answer(self, fitted: Fitted, asked: float, begun: str = "") -> Answer:
        """Let the model speak. However this is left, what it said is kept."""
        if fitted.dropped:
            yield self._drop(fitted)
        turn = self.turns[-1]
        ids = self._encode(fitted.messages)
        limit = min(self.params.max_new_tokens, self.budget.window - len(ids))
        params = replace(self.params, max_new_tokens=max(1, limit))
        finish = "cancelled"
        said = Reasoning(thinks=not begun and self._opens_reasoning(ids))
        events: list[Event] = []
        first = last = time.perf_counter()
        cached = 0
        try:
            cached = self.sequence.feed(ids)
            for event in self.sequence.decode(params, continues=bool(begun)):
                last = time.perf_counter()
                first = first if events else last
                events.append(event)
                if event.finish_reason:
                    finish = event.finish_reason
                elif stuck([one.token_id for one in events[-LOOP_TOKENS:]]):
                    finish = "loop"
                text = said.push(event.text) + (said.end() if finish != "cancelled" else "")
                if text and said.thoughts and said.answer == text:
                    yield Notice("reasoning", f"thought for {last - first:.1f} s; /reasoning shows it")
                if text:
                    yield Piece(text)
                if finish == "loop":
                    yield Notice(
                        "loop", "the reply repeats itself and was stopped; try /set temperature 0.7, then /retry"
                    )
                    break
            if said.thoughts and not said.answer:
                yield Notice("reasoning", "the reply ended before it had thought to the end; /reasoning shows it")
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise BareloopError("no memory for more; what was said is kept; /clear or a smaller model") from error
            raise
        finally:
            said.end()
            before = turn[1].get("reasoning", "") if begun else ""
            reasoning, answer = f"{before}\n{said.thoughts}".strip(), begun + said.answer
            if answer or reasoning or finish != "cancelled":
                marks = {"reasoning": reasoning, "finish_reason": "" if finish == "stop" else finish}
                kept = {key: value for key, value in marks.items() if value}
                turn[1:] = [{"role": "assistant", "content": answer, **kept}]
            reply = Reply(
                turn=len(self.turns),
                text=answer,
                reasoning=reasoning,
                finish_reason=finish,
                prompt_tokens=len(ids),
                completion_tokens=len(events),
                cached_tokens=cached,
                window=self.budget.window,
                ttft=first - asked,
                seconds=last - first,
                events=events,
            )
            if events:
                self.statistics.replies.append(reply)
        yield reply

    def _opens_reasoning(self, ids: Sequence[int]) -> bool:
        """Whether a template has opened the block at the prompt's end, as some do."""
        return self.llm.tokenizer.decode(ids[-8:], skip_special_tokens=False).rstrip().endswith(OPEN)

    def _summarise(self) -> Iterator[Notice]:
        """Ask for a summary at the end of what the model has read, so that it reads only the request."""
        request = [[{"role": "user", "content": SUMMARY_REQUEST}]]
        messages = shown(self.settings.system, [*self.turns[self.start : -1], *request], self.summary, self.folds)
        ids = self.template.encode(messages)
        limit = summary_limit(self.budget)
        if len(ids) + limit > self.budget.window:
            yield Notice("warning", "no room to ask for a summary; old turns are dropped without one")
            return
        self.statistics.summary_read += len(ids) - self.sequence.feed(ids)
        params = replace(self.params, temperature=0.0, max_new_tokens=limit)
        written = "".join(event.text for event in self.sequence.decode(params, continues=False))
        summary = split(written)[1].strip().removeprefix(EARLIER).strip()
        if not summary:
            yield Notice("warning", "the summary came out empty; old turns are dropped without one")
            return
        self.summary = summary
        self.statistics.summaries += 1
        yield Notice("summary", f"summary of what is dropped: {summary}")


def stuck(ids: Sequence[int]) -> bool:
    """Whether the last tokens are one run, repeated."""
    tail = list(ids[-LOOP_TOKENS:])
    if len(tail) < LOOP_TOKENS:
        return False
    return any(tail[period:] == tail[:-period] for period in range(1, LOOP_TOKENS // LOOP_TIMES + 1))


def _template(llm: LLM, now: datetime) -> ChatTemplate | PlainTemplate:
    tokenizer = llm.tokenizer
    assert llm.folder is not None  # or there were no tokenizer
    try:
        return ChatTemplate.load(llm.folder, tokenizer, now)
    except BareloopError:
        return PlainTemplate(tokenizer)
