"""The chunks of a streamed chat completion -> the events of a reply."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from chat.models.interface import TokenProbability
from engine.runtime.errors import BareloopError
from engine.text.reasoning import CLOSE, OPEN

REASONING = ("reasoning_content", "reasoning")  # of llama.cpp, DeepSeek and ours; of vLLM
KEPT = "what came of the reply is kept: /continue, or /retry"
FINISH_REASONS = {"length": "length", "content_filter": "content_filter"}  # the others are a normal end


@dataclass(frozen=True)
class RemoteEvent:
    """A chunk with text, or the end of the reply. A reasoning stands between its tags."""

    text: str
    finish_reason: str | None = None
    tokens: tuple[TokenProbability, ...] = ()  # if log-probabilities were requested
    token_id: None = None


class RemoteGeneration:
    """A reply of a server. `chunks` are of its answer; `prompt_tokens` is our own count, until the server tells its."""

    in_reasoning = False

    def __init__(
        self, chunks: Iterator[dict[str, Any]], prompt_tokens: int, learn: Callable[[int], None] | None = None
    ) -> None:
        """Wait for the first chunk, as until then the server may refuse. `learn` gets the server's prompt tokens."""
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = self.cached_tokens = 0  # chunks with text, until the server tells the tokens
        self._learn = learn
        self._source = chunks
        first = next(chunks, None)
        self._chunks = chain([] if first is None else [first], chunks)
        self._is_thinking = False

    def __iter__(self) -> Iterator[RemoteEvent]:
        started = finished = reported = False
        try:
            for chunk in self._chunks:
                reported |= self._read_usage(_object(chunk.get("usage")))
                choices = chunk.get("choices")
                for choice in choices if isinstance(choices, list) else ():
                    event = self._event(_object(choice))
                    if event.text or event.finish_reason:
                        started = True
                        finished = finished or event.finish_reason is not None
                        yield event
        except BareloopError as error:
            if not finished:  # otherwise only the counts are missing
                raise BareloopError(f"{error}; {KEPT}" if started else str(error)) from error
        if not finished:
            yield RemoteEvent("", "stop")
        if reported and self._learn is not None:
            self._learn(self.prompt_tokens)

    def cancel(self) -> None:
        """Close the connection, so that the server stops."""
        if isinstance(self._source, Generator):
            self._source.close()

    def _event(self, choice: Mapping[str, Any]) -> RemoteEvent:
        delta = _object(choice.get("delta"))
        thought, text = _text(delta, *REASONING), _text(delta, "content", "refusal")
        self.completion_tokens += bool(thought or text)
        if thought and not self._is_thinking:
            self._is_thinking, thought = True, f"{OPEN}{thought}"
        if text and self._is_thinking:
            self._is_thinking, text = False, f"{CLOSE}{text}"
        reason = choice.get("finish_reason")
        entries = _object(choice.get("logprobs")).get("content")
        return RemoteEvent(
            f"{thought}{text}",
            FINISH_REASONS.get(str(reason), "stop") if reason else None,
            tuple(_probability(_object(entry)) for entry in entries) if isinstance(entries, list) else (),
        )

    def _read_usage(self, usage: Mapping[str, Any]) -> bool:
        """Take the server's counts. Return whether it has counted the prompt."""
        counts = {**_object(usage.get("prompt_tokens_details")), **usage}
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens"):
            if type(counts.get(name)) is int and counts[name] >= 0:
                setattr(self, name, counts[name])
        return type(usage.get("prompt_tokens")) is int and usage["prompt_tokens"] > 0


def _object(value: Any) -> Mapping[str, Any]:
    """An object of an answer; an empty one if the server sent something else, or null."""
    return value if isinstance(value, dict) else {}


def _text(value: Mapping[str, Any], *names: str) -> str:
    """The first of these fields that is a text."""
    return next((text for name in names if isinstance(text := value.get(name), str) and text), "")


def _probability(entry: Mapping[str, Any]) -> TokenProbability:
    alternatives = entry.get("top_logprobs")
    others = [_probability(_object(other)) for other in alternatives] if isinstance(alternatives, list) else []
    logprob = entry.get("logprob")
    return TokenProbability(
        _text(entry, "token"),
        float(logprob) if isinstance(logprob, int | float) else -math.inf,
        [(other.text, other.logprob) for other in others],
    )
