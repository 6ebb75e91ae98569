"""One client: its body, its connection, and the answer to it, whole or as server-sent events.

An endpoint returns a `Job`. All of its work, with what it holds (a model, rows), is done while the job is called: so
nothing stays behind when the client leaves, before, during or after the answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.serve.exceptions import as_api_error, name_of
from engine.serve.failures import respond
from engine.serve.protocol.common import MAX_TEXT
from engine.serve.protocol.errors import ApiError, unavailable
from engine.serve.protocol.fields import Fields, read_request, text_size
from engine.serve.state import Limits

LARGE_BODY = 50_000  # bytes, which can take 50 ms to check
SLICE = 64  # entries of a list that are encoded at once: with 20 alternatives each a millisecond
YIELD_BYTES = 1024  # of a part, after which other clients are served
FAIL_SECONDS = 5.0  # in which a stream's client must take its last event, an error
PING = b": ping\n\n"  # a comment, which keeps proxies from closing a connection during a long prompt
STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events otherwise
)

T = TypeVar("T", bound=Fields)
R = TypeVar("R")


async def read_body(kind: type[T], request: Request) -> T:
    """Read the JSON body of a request. Raises `ApiError` 400 or 413; checking megabytes does not hold up others."""
    body = await request.body()
    if len(body) < LARGE_BODY:
        return read_request(kind, body)
    if len(body) > MAX_TEXT:
        check_size(kind, body)
    return await prepare(request, lambda: read_request(kind, body))


def check_size(kind: type[Fields], body: bytes) -> None:
    """Raise `ApiError` 413 for a body that is too large without its images."""
    size, what = (text_size(body), " without its images") if kind.TAKES_IMAGES else (len(body), "")
    if size > MAX_TEXT:
        raise ApiError(413, f"the body has {size:,} bytes{what}: use up to {MAX_TEXT:,}")


async def prepare(request: Request, work: Callable[[], R], has_images: bool = False) -> R:
    """Run in a thread what takes longer for a longer body. Two large ones at a time leave threads for small ones.

    `has_images`: it decodes images, of which a few kilobytes may be many megapixels.
    """
    if not has_images and len(await request.body()) < LARGE_BODY:
        return await asyncio.to_thread(work)
    turns = request.app.state.server.large_bodies
    await turns.acquire()
    running = asyncio.ensure_future(asyncio.to_thread(work))
    running.add_done_callback(lambda _: turns.release())  # also if the client leaves before: the thread goes on
    return await asyncio.shield(running)


def encode(content: Any) -> bytes:
    """JSON as UTF-8. Raises for NaN and infinity, which JSON does not have."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


async def encode_large(content: Any) -> bytes:
    """The same for what may be megabytes. Others are served after every slice of a long list.

    A value of a mapping may be bytes: JSON that has been encoded, in another thread.
    """
    parts = []
    for part in _json_parts(content):
        parts.append(part)
        if len(part) >= YIELD_BYTES:
            await asyncio.sleep(0)
    return b"".join(parts)


def _json_parts(content: Any) -> Iterator[bytes]:
    """The JSON text in parts, none of which takes long."""
    if isinstance(content, bytes):
        yield content
    elif isinstance(content, Mapping):
        for number, (key, value) in enumerate(content.items()):
            yield (b"," if number else b"{") + encode(key) + b":"
            yield from _json_parts(value)
        yield b"}" if content else b"{}"
    elif isinstance(content, list) and len(content) > SLICE:
        for start in range(0, len(content), SLICE):
            yield (b"," if start else b"[") + encode(content[start : start + SLICE])[1:-1]
        yield b"]"
    elif isinstance(content, list) and any(isinstance(item, Mapping) for item in content):
        for number, item in enumerate(content):
            yield b"," if number else b"["
            yield from _json_parts(item)
        yield b"]"
    else:
        yield encode(content)


class Client:
    """Sends the answer, in one piece (`send`) or as events (`event`, then `end`)."""

    def __init__(self, send: Send, ping_seconds: float) -> None:
        self._send = send
        self._ping_seconds = ping_seconds
        self._writing = asyncio.Lock()
        self._last_sent = time.monotonic()
        self.has_begun = self.is_streaming = False

    async def send(self, content: Mapping[str, Any]) -> None:
        """The whole answer, as JSON."""
        body = await encode_large(content)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        self.has_begun = True
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def start(self) -> None:
        """Begin a stream. From here on a fault can only be reported as an event."""
        self.has_begun = self.is_streaming = True
        await self._send({"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)})

    async def event(self, content: Mapping[str, Any], is_large: bool = False) -> None:
        """One event of the stream. Waits while the client reads more slowly than this is written."""
        data = await encode_large(content) if is_large else encode(content)
        await self._write(b"data: " + data + b"\n\n")

    async def end(self) -> None:
        """End the stream."""
        await self._write(b"data: [DONE]\n\n")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: ApiError) -> None:
        """End the stream with an error."""
        await self.event(error.body())
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def ping(self) -> None:
        """Keep an idle stream open, until cancelled."""
        while True:
            await asyncio.sleep(self._ping_seconds)
            if self.is_streaming and time.monotonic() - self._last_sent >= self._ping_seconds:
                await self._write(PING)

    async def _write(self, data: bytes) -> None:
        async with self._writing:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self._last_sent = time.monotonic()


class Job(Response):
    """The work for one client. It is cancelled when the client leaves, or has waited too long."""

    def __init__(self, work: Callable[[Client], Awaitable[None]], limits: Limits) -> None:
        self.work, self.limits = work, limits
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = Client(send, self.limits.ping_seconds)
        work = asyncio.ensure_future(self._work(client, scope, receive, send))
        others = [asyncio.ensure_future(disconnected(receive)), asyncio.ensure_future(client.ping())]
        try:
            await asyncio.wait([work, others[0]], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            await cancel(work, *others)

    async def _work(self, client: Client, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self.limits.timeout) as deadline:
                await self.work(client)
        except Exception as error:
            is_late = isinstance(error, TimeoutError) and deadline.expired()  # not a time-out of the work itself
            failure = timed_out(self.limits.timeout) if is_late else as_api_error(error, name_of(scope))
            if not client.has_begun:
                await respond(failure)(scope, receive, send)
                return
            if not client.is_streaming:
                raise  # half of an answer has been sent
            with suppress(TimeoutError):  # a client that reads nothing could hold its connection for ever
                async with asyncio.timeout(FAIL_SECONDS):
                    await client.fail(failure)


def timed_out(seconds: float) -> ApiError:
    """The error of a request that has taken too long. Clients should not try again: it would take as long."""
    error = unavailable(f"the answer was not complete within {seconds:g} seconds; ask for fewer tokens")
    error.headers["x-should-retry"] = "false"
    return error


async def disconnected(receive: Receive) -> None:
    """Return when the client has left. Its body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancel(*tasks: asyncio.Future[None]) -> None:
    """Cancel tasks, and wait until they have cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def cache_scope(request: Request, salt: str | None) -> Hashable:
    """What shares cached prompts: requests with the same key and the same salt."""
    return request.scope.get("state", {}).get("scope"), salt
