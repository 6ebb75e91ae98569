"""A server without a network, in virtual time: what it does when is known exactly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import httpx2

from bench.load.client import Client, Clock


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer whenever nothing else is to be done."""

    def __init__(self) -> None:
        self.virtual = 0.0
        super().__init__()

    def time(self) -> float:
        return self.virtual

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self.virtual = max(self.virtual, self._scheduled[0]._when)
        super()._run_once()


def in_virtual_time(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine to its end."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work())


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


class Stream(httpx2.AsyncByteStream):
    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self.pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.pieces


@dataclass
class FakeServer(httpx2.AsyncBaseTransport):
    """Takes `prefill` seconds to the first token and `step` to each further one, `rows` requests at a time.

    A chunk has `tokens_per_chunk` tokens. `answers`: status and body for the requests of these numbers. `refused`:
    fields that are answered with 400. `text_field`: of /tokenize, by which a word is a token; empty: it has none.
    """

    prefill: float = 0.5
    step: float = 0.1
    rows: int = 1000
    tokens_per_chunk: int = 1
    added: int = 1  # tokens put before a prompt
    cached: int | None = None
    has_usage: bool = True
    text_field: str = "prompt"
    answers: dict[int, tuple[int, str]] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    bodies: list[dict[str, Any]] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)  # times
    running: int = 0
    most: int = 0  # requests at a time

    def client(self, **options: Any) -> Client:
        """A client of this server, in virtual time."""
        clock = Clock(lambda: asyncio.get_running_loop().time(), asyncio.sleep)
        options = {"model": "fake", "output_tokens": 5} | options
        return Client("http://fake/v1/", clock=clock, transport=self, **options)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json={"data": [{"id": "fake"}, {"id": "other"}]})
        body = json.loads(request.content)
        if request.url.path == "/tokenize":
            tokens = list(range(len(body.get(self.text_field, "").split())))
            return httpx2.Response(200, json={"tokens": tokens}) if self.text_field else httpx2.Response(404)
        for name in self.refused:
            if name in body:
                return httpx2.Response(400, json={"error": {"message": f"{name} is not known"}})
        number = len(self.bodies)
        self.bodies.append(body)
        self.arrived.append(asyncio.get_running_loop().time())
        if number in self.answers:
            status, text = self.answers[number]
            return httpx2.Response(status, text=text)
        return httpx2.Response(200, stream=Stream(self.answer(body)))

    async def answer(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        self.running += 1
        self.most = max(self.most, self.running)
        if self.running > self.rows:
            raise AssertionError("more requests than rows")
        text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        new = body.get("max_tokens") or body["max_completion_tokens"]
        if "messages" in body:
            yield event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]})
        for token in range(new):
            await asyncio.sleep(self.prefill if token == 0 else self.step)
            if (token + 1) % self.tokens_per_chunk == 0 or token == new - 1:
                part = {"delta": {"content": "a"}} if "messages" in body else {"text": "a"}
                yield event({"choices": [{"index": 0, "finish_reason": None, **part}], "usage": None})
        yield event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
        if self.has_usage:
            usage: dict[str, Any] = {"prompt_tokens": len(text.split()) + self.added, "completion_tokens": new}
            if self.cached is not None:
                usage["prompt_tokens_details"] = {"cached_tokens": self.cached}
            yield event({"choices": [], "usage": usage})
        yield event(b"[DONE]")
        self.running -= 1
