"""A conversation as a state machine: the turns, the prompt made of them, the replies. No input or output.

    session = Session(LocalModel(llm), Settings(system="Be kind."))
    for event in session.send("Hi!"):       # Notice, Piece, …, finally a Reply
        ...

It may be abandoned at any event (Ctrl-C, a closed window): the part of the reply so far is kept, marked as partial.
`stop` does the same from another thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import chain
from typing import Any

from chat.context import HIGH_WATER, SUMMARY_PREFIX, FittedPrompt, summary_limit, wants_summary
from chat.conversation.events import ChatEvents, Notice, Reply, Settings, Statistics
from chat.conversation.inspection import alternative
from chat.conversation.recall import Memory
from chat.conversation.remembering import Remembering, shortage_explained
from chat.conversation.streaming import LOOP_CHARACTERS, ReplyParts, repeats
from chat.conversation.tree import Tree, Turn
from chat.images import Content, ImagePart, content_of, images_of, text_of
from chat.models.interface import ChatModel, Generation, PromptTooLongError, ReplyEvent, TokenProbability
from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.wording import plural
from engine.text.reasoning import split

SUMMARY_REQUEST = "Summarise our conversation so far in one line. Keep names and facts."


class Session(Remembering):
    """One conversation with one model."""

    def __init__(
        self,
        model: ChatModel,
        settings: Settings | None = None,
        now: datetime | None = None,
        memory: Memory | None = None,
    ) -> None:
        super().__init__(model, settings, now, memory)
        self.statistics = Statistics()
        self.on_message: Callable[[], None] = lambda: None  # called when a turn was added, before anything is computed
        self.on_begin: Callable[[], None] = lambda: None  # called when the reply to the last turn begins
        self._running: Generation | None = None
        self._is_stopping = False

    def send(self, text: str, images: Sequence[ImagePart] = ()) -> ChatEvents:
        """Send a message and get a reply. Raises, and changes nothing, if it cannot fit into the window."""
        yield from self._add_turn([_message(content_of(text, images))])

    def retry(self, turn: int | None = None) -> ChatEvents:
        """Get another reply to a message, by default the last."""
        index = self.index(turn)
        if self.knows("temperature") and self.params.temperature == 0:
            text = "temperature is 0, so the reply will hardly differ; /set temperature 0.7 changes that"
            yield Notice("info", text)
        yield from self._add_turn([_message(self.turns[index][0]["content"])], index=index)

    def edit(self, text: str, turn: int | None = None, images: Sequence[ImagePart] | None = None) -> ChatEvents:
        """Replace a message, by default the last, and get a reply to the new one. `images` None: it keeps its own.

        The old message stays as another version, with all that follows it.
        """
        index = self.index(turn)
        kept = images_of(self.turns[index][0]["content"]) if images is None else images
        yield from self._add_turn([_message(content_of(text, kept))], index=index)

    def fork(self, turn: int, token: int, choice: int) -> ChatEvents:
        """Go on from another token: a new version of a reply, cut before `token`, with an alternative in its place.

        `choice` is an index in the token's alternatives, best first. An end token ends the reply. Raises `UsageError`
        where a reply cannot go on.
        """
        index = self.index(turn)
        tokens = self.tokens_of(index)
        message, reply = self.turns[index]
        before, chosen = alternative(self.model, reply, tokens, token, choice)
        marks: dict[str, Any] = {name: reply[name] for name in ("reasoning", "memories") if name in reply}
        beginning = {"role": "assistant", "content": before + chosen.piece, **marks}
        tokens = [*tokens[:token], chosen]
        if not self.model.ends(chosen.text):
            beginning["finish_reason"] = "cancelled"  # until more comes
            yield from self._add_turn([dict(message), beginning], tokens, index)
            return
        with self._tree.lock:
            self._cut(index)
            self.turns.append([dict(message), beginning])
        text, reasoning, window = beginning["content"], marks.get("reasoning", ""), self.budget.window
        ended = Reply(index + 1, text, reasoning, "stop", 0, 0, 0, window, 0.0, 0.0, tokens=tokens)
        self._note(ended)
        yield from self._remember(self.turns[-1], None)
        yield ended

    def proceed(self) -> ChatEvents:
        """Continue the last reply where it was cut off."""
        turn = self.turns[self.index()]
        if len(turn) < 2:
            raise UsageError("there is no reply to continue; use /retry")
        reply = turn[1]
        if not reply.get("finish_reason"):
            raise UsageError("the reply is complete; send a message, or /retry")
        if not reply["content"]:
            raise UsageError("the reply was stopped before its first word; use /retry")
        sent, self._is_stopping = time.perf_counter(), False
        yield from self._reply(self._fit(), sent, self.tree.node(len(self.turns) - 1).tokens or ())

    def stop(self) -> None:
        """End the reply that is being generated, or the summary before it, from any thread. Its part is kept."""
        self._is_stopping = True
        if (running := self._running) is not None:
            running.cancel()

    def clear(self) -> None:
        """Start over with the same settings and the present date."""
        self.restore(Tree())
        self.statistics = Statistics()
        self.now = datetime.now()
        self.model = self.model.at(self.now)

    def _add_turn(self, turn: Turn, tokens: Sequence[TokenProbability] = (), index: int | None = None) -> ChatEvents:
        """Add a turn and generate its reply, or the rest of it: these are the tokens of its beginning.

        With an index it replaces that turn, and all after it, as a new version. Without a new token it is removed
        again, and the old version is chosen.
        """
        sent, self._is_stopping = time.perf_counter(), False
        beginning, before = turn[-1], (self.start, self.summary)
        place = len(self.turns) if index is None else index
        with self._tree.lock:
            replaced = self.turns[place:]
            is_new = not replaced or replaced[0][0]["content"] != turn[0]["content"]
            self._cut(place)
            self.turns.append(turn)
            self.unanswered = "" if is_new else self.unanswered
        try:
            prompt = self._fit()
            self.on_message()
            if self.settings.history and wants_summary(
                self._tokens_of_turns(), len(self.turns) - self.start, self.budget, self.settings.strategy
            ):
                yield from self._summarise()
                prompt = self._fit(HIGH_WATER)
            prompt = yield from self._recall(prompt)
            if self._is_stopping:
                yield _stopped(False)
                return
            yield from self._reply(prompt, sent, tokens)
        finally:
            if turn[-1] is beginning:
                with self._tree.lock:
                    self._tree.discard(turn)
                    self.turns[place:] = replaced
                    self.unanswered = turn[0]["content"] if is_new else self.unanswered
                    if place < before[0]:
                        self.start, self.summary = before

    def _drop(self, prompt: FittedPrompt) -> Notice:
        self.start = prompt.start
        self.statistics.evictions += 1
        self.statistics.dropped_turns += prompt.dropped
        self.statistics.dropped_tokens += prompt.dropped_tokens
        self.statistics.dropped_images += prompt.dropped_images
        dropped = f"dropped {plural(prompt.dropped, 'turn')}, {plural(prompt.dropped_tokens, 'token')}"
        if prompt.dropped_images:
            dropped += f" and {plural(prompt.dropped_images, 'image')}"
        filled = prompt.tokens / self.budget.window
        return Notice("dropped", f"{dropped}; window {filled:.0%} full")

    def _reply(self, prompt: FittedPrompt, sent: float, tokens: Sequence[TokenProbability]) -> ChatEvents:
        """Generate the last turn's reply, or continue it. However this generator ends, the text so far is kept.

        `sent` is when the message was sent (`time.perf_counter`); `tokens` are those of the reply so far.
        """
        turn = self.turns[-1]
        beginning = turn[1] if len(turn) > 1 and turn[1]["content"] else None
        generation, source = yield from self._generate(prompt, beginning is not None)
        finish = "cancelled"
        parts = self._part = ReplyParts(generation.in_reasoning, beginning, tokens)
        events: list[ReplyEvent] = []
        first = last = time.perf_counter()
        try:
            with shortage_explained():
                for event in source:
                    now = time.perf_counter()
                    new = self.model.probabilities([event])
                    seconds = (now - (last if events else sent)) / max(len(new), 1)
                    last, first = now, first if events else now
                    events = [*events[1 - LOOP_CHARACTERS :], event]  # as many as `repeats` looks at
                    if event.finish_reason:
                        finish = event.finish_reason
                    elif repeats(events):
                        finish = "loop"
                    piece = parts.push(
                        event.text, [replace(token, seconds=seconds) for token in new], finish != "cancelled"
                    )
                    if piece.text and parts.reasoning and parts.answer == piece.text:
                        yield Notice("reasoning", f"thought for {last - first:.1f} s; /reasoning shows it")
                    if piece.text or piece.reasoning or piece.tokens:
                        yield piece
                    if finish == "loop":
                        yield Notice("loop", "stopped: the reply repeats itself; try /set temperature 0.7, then /retry")
                    if finish == "loop" or self._is_stopping:
                        break
                if parts.reasoning and not parts.answer:
                    yield Notice("reasoning", "the reply ended inside its reasoning; /reasoning shows it")
        finally:
            self._running = None
            generation.cancel()
            parts.end()
            message = parts.message(finish) | ({"memories": self._recalled} if self._recalled else {})
            reply = Reply(
                turn=len(self.turns),
                text=message["content"],
                reasoning=message.get("reasoning", ""),
                finish_reason=finish,
                prompt_tokens=generation.prompt_tokens,
                completion_tokens=generation.completion_tokens,
                cached_tokens=generation.cached_tokens,
                window=self.budget.window,
                ttft=first - sent,
                seconds=last - first,
                tokens=parts.tokens,
                memories=self._recalled,
            )
            is_kept = bool(parts.answer or parts.reasoning or finish != "cancelled")
            with self._tree.lock:
                self._part = None
                if is_kept:
                    turn[1:] = [message]
                    self._note(reply)
            if events:
                self.statistics.add(reply)
        if self._is_stopping and finish == "cancelled":
            yield _stopped(is_kept)
        if is_kept:
            yield from self._remember(turn, beginning)
            yield reply

    def _note(self, reply: Reply) -> None:
        """Keep the last turn's reply and its tokens with the turn."""
        node = self.tree.node(len(self.turns) - 1)
        node.reply, node.tokens, node.scored_by = reply.without_tokens(), list(reply.tokens), None

    def _generate(
        self, prompt: FittedPrompt, continues: bool
    ) -> Generator[Notice, None, tuple[Generation, Iterator[ReplyEvent]]]:
        """Submit the prompt, and wait for the first event.

        If a server finds the prompt too long, drop more turns, as long as there are any.
        """
        while True:
            if prompt.dropped:
                yield self._drop(prompt)
            limit = max(1, min(self.params.max_new_tokens, self.budget.window - prompt.tokens))
            sampling = {**self.settings.sampling, "max_new_tokens": limit}
            generation = self._start(self.model.generate(prompt.messages, sampling, continues))
            self.on_begin()
            try:
                with shortage_explained():
                    events = iter(generation)
                    first = [event for event in (next(events, None),) if event is not None]
                return generation, chain(first, events)
            except PromptTooLongError as error:
                yield Notice("warning", str(error))
                prompt = self._fit()
            except BaseException:
                self._running = None
                generation.cancel()
                raise

    def _start(self, generation: Generation) -> Generation:
        """Note what `stop` cancels; it may have come already."""
        self._running = generation
        if self._is_stopping:
            generation.cancel()
        return generation

    def _summarise(self) -> Iterator[Notice]:
        """Ask the model for a summary. The request is appended to the cached prompt, so only it is computed.

        Memories are left out: what a summary took from them could not be forgotten any more.
        """
        turns = [*self.turns[self.start : -1], [_message(SUMMARY_REQUEST)]]
        messages = self._messages(turns)
        limit = summary_limit(self.budget)
        if self.count(messages) + limit > self.budget.window:
            yield Notice("warning", "no room to ask for a summary; old turns are dropped without one")
            return
        sampling = {**self.settings.sampling, "temperature": 0.0, "max_new_tokens": limit}
        try:
            reply = self._start(self.model.generate(messages, sampling, False))
            try:
                text = "".join(event.text for event in reply)
            finally:
                self._running = None
                reply.cancel()
        except BareloopError as error:
            yield Notice("warning", f"no summary, so old turns are dropped without one: {error}")
            return
        if self._is_stopping:
            return
        self.statistics.summary_read += reply.prompt_tokens - reply.cached_tokens
        summary = split(text)[1].strip().removeprefix(SUMMARY_PREFIX).strip()
        if not summary:
            yield Notice("warning", "the summary was empty; old turns are dropped without one")
            return
        self.summary = summary
        self.statistics.summaries += 1
        yield Notice("summary", f"summary of the dropped turns: {summary}")


def _message(content: Content) -> dict[str, Any]:
    """A user's message. Raises `UsageError` for one that has neither text nor images."""
    if not text_of(content).strip() and not images_of(content):
        raise UsageError("the message is empty")
    return {"role": "user", "content": content}


def _stopped(is_kept: bool) -> Notice:
    """Tell that the user has stopped a reply, and whether a part of it is kept."""
    return Notice("stopped", f"stopped{'; /continue resumes it, /retry starts over' if is_kept else ' before a reply'}")
