"""A server whose model is a judge: a test decides what it says to which question, and how it fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.engine.remote.fake_server import Answer, Asked, error, serving

NO_CHOICES = Answer({"object": "chat.completion", "choices": []})
NO_TEXT = Answer({"choices": [{"index": 0, "message": {"role": "assistant", "content": None}}]})
NOT_JSON = Answer("<html>It works!</html>")
CUT = Answer('{"choices": [{"ind', breaks=True)
BUSY = error("slow down", 429, retry_after="0")
BROKEN = error("out of order", 500)
NO_KEY = error("Incorrect API key provided", 401)

Said = str | Answer | Callable[[], "str | Answer"]


def completion(text: str | None, **fields: Any) -> Answer:
    """A chat completion. `fields`: others of its message."""
    message = {"role": "assistant", "content": text, **fields}
    return Answer({"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


@dataclass
class JudgeServer:
    """Answers of a server. `says`: for prompts with this text, a judgment, an answer, or several, one after the other.

    The last of several is repeated. A callable is called for the answer, and may wait.
    """

    says: Mapping[str, Said | Sequence[Said]] = field(default_factory=dict)
    default: Said = "Good. Rating: [[5]]"
    names: Sequence[str] = ("judge", "org/judge")
    refuses: Callable[[dict[str, Any]], Answer | None] = lambda body: None  # by the fields of a request
    bodies: list[dict[str, Any]] = field(default_factory=list)  # of the judgments that were asked for
    keys: set[str] = field(default_factory=set)  # that were sent
    _times: dict[str, int] = field(default_factory=dict)

    def answer(self, asked: Asked) -> Answer:
        """The answer to a request."""
        self.keys.add(asked.headers.get("Authorization", ""))
        if asked.path == "/v1/models":
            return Answer({"object": "list", "data": [{"id": name} for name in self.names]})
        if asked.path != "/v1/chat/completions":
            return error("not found", 404)
        self.bodies.append(asked.body)
        said = self.refuses(asked.body) or self._said(asked.body["messages"][-1]["content"])
        said = said() if callable(said) else said
        return completion(said) if isinstance(said, str) else said

    def asked_about(self, text: str) -> int:
        """How many prompts with this text there were."""
        return sum(text in body["messages"][-1]["content"] for body in self.bodies)

    def _said(self, prompt: str) -> Said:
        for text, said in self.says.items():
            if text in prompt:
                if isinstance(said, str) or not isinstance(said, Sequence):
                    return said
                number = self._times[text] = self._times.get(text, 0) + 1
                return said[min(number, len(said)) - 1]
        return self.default


@contextlib.contextmanager
def judging(**settings: Any) -> Iterator[tuple[str, JudgeServer]]:
    """Run a server with these fields of `JudgeServer`. Yield its URL and what it answers by, which may be changed."""
    script = JudgeServer(**settings)
    with serving(script.answer) as server:
        yield server.url, script
