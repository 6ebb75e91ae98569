"""One client: its body, its connection, and the answer to it, whole or as server-sent events.

An endpoint returns a `Job`. All of its work, with what it holds (a model, rows), is done while the job is called: so
nothing stays behind when the client leaves, before, during or after the answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.serve.failures import as_api_error
from engine.serve.protocol.errors import ApiError, unavailable
from engine.serve.state import Limits

PING = b": ping\n\n"  # a comment, which keeps proxies from closing a connection during a long prompt
STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events otherwise
)


def encode(content: Any) -> bytes:
    """JSON as UTF-8. Raises for NaN and infinity, which JSON does not have."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


class Client:
    """Sends the answer, in one piece (`send`) or as events (`event`, then `end`)."""

    def __init__(self, send: Send, ping_seconds: float) -> None:
        self._send = send
        self._ping_seconds = ping_seconds
        self._writing = asyncio.Lock()
        self._last_sent = time.monotonic()
        self.is_streaming = False

    async def send(self, content: Mapping[str, Any], status: int = 200) -> None:
        """The whole answer, as JSON."""
        body = encode(content)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def start(self) -> None:
        """Begin a stream. From here on a fault can only be reported as an event."""
        self.is_streaming = True
        await self._send({"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)})

    async def event(self, content: Mapping[str, Any]) -> None:
        """One event of the stream. Waits while the client reads more slowly than this is written."""
        await self._write(b"data: " + encode(content) + b"\n\n")

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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        client = Client(send, self.limits.ping_seconds)
        work = asyncio.ensure_future(self._work(client))
        others = [asyncio.ensure_future(disconnected(receive)), asyncio.ensure_future(client.ping())]
        try:
            await asyncio.wait([work, others[0]], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            await cancel(work, *others)

    async def _work(self, client: Client) -> None:
        try:
            async with asyncio.timeout(self.limits.timeout):
                await self.work(client)
        except Exception as error:
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                return  # the connection broke while this was sending
            failure = timed_out(self.limits.timeout) if isinstance(error, TimeoutError) else as_api_error(error)
            if not client.is_streaming:
                raise failure from error
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
