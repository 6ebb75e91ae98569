"""The chunks of a streamed chat completion -> the events of a reply."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from chat.models.interface import TokenProbability
from engine.remote.cancellation import Cancellation
from engine.runtime.errors import BareloopError
from engine.text.reasoning import CLOSE, OPEN
from engine.text.surrogates import without_surrogates

REASONING = ("reasoning_content", "reasoning")  # of llama.cpp, DeepSeek and ours; of vLLM
KEPT = "what came of the reply is kept: /continue, or /retry"
FINISH_REASONS = {"length": "length", "content_filter": "content_filter"}  # the others are a normal end


@dataclass(frozen=True)
class RemoteEvent:
    """A chunk with text, or the end of the reply. A reasoning stands between its tags."""

    text: str
    finish_reason: str | None = None
    tokens: tuple[TokenProbability, ...] = ()  # if the server tells them; else the chunk's text as one
    token_id: None = None


class RemoteGeneration:
    """A reply of a server. `prompt_tokens` is our own count, until the server tells its.

    A thread reads it, so that another that waits for it can be told to stop, even before the server has answered.
    """

    in_reasoning = False

    def __init__(
        self,
        answer: Callable[[Cancellation], Iterator[dict[str, Any]]],
        prompt_tokens: int,
        learn: Callable[[int], None] | None = None,
    ) -> None:
        """`answer` asks the server, and yields the chunks. `learn` gets the server's prompt tokens."""
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = self.cached_tokens = 0  # chunks with text, until the server tells the tokens
        self._answer, self._learn = answer, learn
        self._cancellation = Cancellation()
        self._arrived: SimpleQueue[dict[str, Any] | BaseException | None] = SimpleQueue()  # None: the end
        self._is_thinking = self._tells_tokens = False
        self._thought, self._said = _Characters(), _Characters()

    def __iter__(self) -> Iterator[RemoteEvent]:
        started = finished = reported = False
        try:
            for chunk in self._chunks():
                reported |= self._read_usage(_object(chunk.get("usage")))
                choices = chunk.get("choices")
                for choice in choices if isinstance(choices, list) else ():
                    event = self._event(_object(choice))
                    if event.text or event.finish_reason:
                        started = True
                        finished = finished or event.finish_reason is not None
                        yield event
        except BareloopError as error:
            if not started:
                raise
            if not finished:  # otherwise only the counts are missing
                raise BareloopError(f"{error}; {KEPT}") from error
        if self._cancellation.is_cancelled:
            return
        if not finished:
            yield self._event({"finish_reason": "stop"})
        if reported and self._learn is not None:
            self._learn(self.prompt_tokens)

    def cancel(self) -> None:
        """Close the connection, so that the server stops."""
        self._cancellation.cancel()
        self._arrived.put(None)

    def _chunks(self) -> Iterator[dict[str, Any]]:
        """Read in a thread. Raises its error; ends when the reply does, or is cancelled."""
        threading.Thread(target=self._read, daemon=True, name="reply").start()
        while not self._cancellation.is_cancelled and (arrived := self._arrived.get()) is not None:
            if isinstance(arrived, BaseException):
                raise arrived
            yield arrived

    def _read(self) -> None:
        try:
            for chunk in self._answer(self._cancellation):
                self._arrived.put(chunk)
        except BaseException as error:  # it is raised where the reply is read
            self._arrived.put(error)
        self._arrived.put(None)

    def _event(self, choice: Mapping[str, Any]) -> RemoteEvent:
        delta = _object(choice.get("delta"))
        reason = choice.get("finish_reason")
        thought = self._thought.push(_text(delta, *REASONING), bool(reason))
        text = self._said.push(_text(delta, "content", "refusal"), bool(reason))
        said = f"{thought}{text}"
        self.completion_tokens += bool(said)
        if thought and not self._is_thinking:
            self._is_thinking, thought = True, f"{OPEN}{thought}"
        if text and self._is_thinking:
            self._is_thinking, text = False, f"{CLOSE}{text}"
        entries = _object(choice.get("logprobs")).get("content")
        tokens = tuple(_probability(_object(entry)) for entry in entries) if isinstance(entries, list) else ()
        self._tells_tokens |= bool(tokens)
        if said and not self._tells_tokens:
            tokens = (TokenProbability(said, None),)
        return RemoteEvent(f"{thought}{text}", FINISH_REASONS.get(str(reason), "stop") if reason else None, tokens)

    def _read_usage(self, usage: Mapping[str, Any]) -> bool:
        """Take the server's counts. Return whether it has counted the prompt."""
        counts = {**_object(usage.get("prompt_tokens_details")), **usage}
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
            if type(counts.get(name)) is int and counts[name] >= 0:
                setattr(self, name, counts[name])
        return type(usage.get("prompt_tokens")) is int and usage["prompt_tokens"] > 0


class _Characters:
    """Joins UTF-16 pairs whose halves come in two chunks. What remains of a pair becomes U+FFFD."""

    def __init__(self) -> None:
        self._half = ""

    def push(self, text: str, is_last: bool) -> str:
        """Add text. Return what is complete."""
        text, self._half = self._half + text, ""
        if not is_last and "\ud800" <= text[-1:] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return without_surrogates(text)


def _object(value: Any) -> Mapping[str, Any]:
    """An object of an answer; an empty one if the server sent something else, or null."""
    return value if isinstance(value, dict) else {}


def _text(value: Mapping[str, Any], *names: str) -> str:
    """The first of these fields that is a text. It may have halves of UTF-16 pairs."""
    return next((text for name in names if isinstance(text := value.get(name), str) and text), "")


def _probability(entry: Mapping[str, Any]) -> TokenProbability:
    alternatives = entry.get("top_logprobs")
    others = [_object(other) for other in alternatives] if isinstance(alternatives, list) else []
    likely = tuple((_token(other), _logprob(other)) for other in others)
    return TokenProbability(_token(entry), _logprob(entry), likely)


def _token(entry: Mapping[str, Any]) -> str:
    """A token's text. The same text is one object in memory, as it comes often."""
    return sys.intern(without_surrogates(_text(entry, "token")))


def _logprob(entry: Mapping[str, Any]) -> float:
    logprob = entry.get("logprob")
    return float(logprob) if isinstance(logprob, int | float) else -math.inf
