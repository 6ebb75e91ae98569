"""The process: a socket, uvicorn, and an orderly end.

After the first SIGTERM or SIGINT the server drains: /health answers 503, new requests are refused, running ones finish,
for some seconds at most. The second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import h11
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from engine.runtime.errors import BareloopError, UsageError, quote
from engine.serve.failures import respond
from engine.serve.protocol.errors import ApiError, unavailable
from engine.serve.state import ProcessState

if TYPE_CHECKING:
    from engine.serve.engine import Engine

SIGNALS = (signal.SIGINT, signal.SIGTERM)
BACKLOG = 512  # connections that the system accepts before we do
KEEP_ALIVE = 75  # seconds that an idle connection stays open: longer than clients and proxies keep it
MAX_HEADERS = 65_536  # bytes of a request's line and headers
HEADER_SECONDS = 30  # in which they must arrive
CANCEL_SECONDS = 2  # that cancelled requests have to end
ALWAYS = ("/health", "/metrics")  # answered while draining
OF_NO_INTEREST = ("Cancel ", "socket.send() raised", "Unsupported upgrade", "No supported WebSocket")  # in the log


class Gate:
    """Counts running requests, refuses new ones while the server drains, and tells those that it cancels in the end."""

    def __init__(self, app: ASGIApp, state: ProcessState) -> None:
        self.app, self.state = app, state
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ALWAYS:
            await self.app(scope, receive, send)
        elif self.state.draining:
            await _refuse(unavailable("the server is shutting down"), scope, receive, send)
        else:
            await self._run(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        self.running += 1
        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:
            if has_begun:
                raise
            error = unavailable("the server has shut down before the reply was complete")
            await _refuse(error, scope, receive, send)
        finally:
            self.running -= 1


class Connection(H11Protocol):
    """uvicorn's, which is closed if the headers of a request do not arrive in time.

    uvicorn would keep it for ever, and some hundreds of such connections would lock everybody out.
    """

    _headers_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()

    def _watch(self) -> None:
        """Start the time for headers unless they are complete. Further bytes of them do not prolong it."""
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._headers_due is None:
            self._headers_due = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _unwatch(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None


class Server(uvicorn.Server):
    """uvicorn, which drains on a signal, and ends with the failure of an engine."""

    def __init__(self, app: ASGIApp, state: ProcessState, drain_seconds: float, max_connections: int) -> None:
        """`drain_seconds`: how long running requests may go on after a signal."""
        self.gate, self.state, self.drain_seconds = Gate(app, state), state, drain_seconds
        self.failure: BaseException | None = None
        self._deadline = 0.0  # of draining
        self._has_told = False  # that it drains
        self._preload: asyncio.Task[None] | None = None
        self.on_ready: Callable[[], None] = lambda: None
        state.engines.on_death = self.engine_died
        super().__init__(
            uvicorn.Config(
                self.gate,
                loop="asyncio",
                http=Connection,
                ws="none",
                interface="asgi3",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=max_connections,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=CANCEL_SECONDS,
                h11_max_incomplete_event_size=MAX_HEADERS,
            )
        )
        for name in ("uvicorn.error", "asyncio"):
            logging.getLogger(name).addFilter(_is_worth_a_line)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs. uvicorn would raise them again in the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, lambda *_: self.stop()) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Drain; the second time, end at once."""
        if self.state.draining:
            self.should_exit = self.force_exit = True
        self._deadline = time.monotonic() + self.drain_seconds
        self.state.draining = True

    def fail(self, error: BaseException) -> None:
        """End at once, with this error. From any thread."""
        self.failure = self.failure or error
        self.state.draining = self.should_exit = True

    def engine_died(self, engine: Engine) -> None:
        """End because a model's thread has ended. From any thread."""
        cause = engine.error
        error = BareloopError(f"the engine of {engine.name} has ended: {type(cause).__name__}: {cause}")
        error.__cause__ = cause
        self.fail(error)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, and load the first model meanwhile."""
        await super().startup(sockets)
        self._preload = asyncio.create_task(self._load())

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second. -> whether to stop accepting connections, and end"""
        if self.state.draining and not self._has_told and self.gate.running and self.failure is None:
            self._has_told = True  # not by `stop`: a signal may come while a line is written
            running = f"{self.gate.running} request{'' if self.gate.running == 1 else 's'}"
            self.state.observer.note(f"ending: {running} may go on for {self.drain_seconds:g} s, until a second signal")
        is_over = self.gate.running == 0 or time.monotonic() >= self._deadline
        return await super().on_tick(counter) or (self.state.draining and is_over)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close all connections, and cancel what still runs; after a failure it can still report that."""
        self.state.observer.is_ending = True
        if self.failure is None:
            for task in self.server_state.tasks:
                task.cancel()
        await super().shutdown(sockets)

    async def _load(self) -> None:
        try:
            await self.state.engines.preload()
        except Exception as error:
            self.fail(error)
        else:
            if not self.state.draining:
                self.on_ready()


def serve(server: Server, listener: socket.socket, host: str) -> None:
    """Serve until a signal, and say when the first model is loaded. Raises the error that ended the server, if any."""
    engines, observer = server.state.engines, server.state.observer
    url = f"http://{_in_url(host)}:{listener.getsockname()[1]}/v1"
    server.on_ready = lambda: observer.note(f"serving {', '.join(engines.names)} on {url}")
    run(server, listener, summarizes=True)


def run(server: Server, listener: socket.socket, summarizes: bool) -> None:
    """Run until a signal, and end the engines. Raises the error that ended the server, if any did.

    `summarizes`: print a line about all requests in the end.
    """
    engines, observer = server.state.engines, server.state.observer
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
        has_ended = engines.close()
        observer.close(summarizes=summarizes and server.failure is None)
    if server.failure is not None:
        raise server.failure
    if not has_ended:  # a model that is being loaded, or a very long step: a thread that the interpreter cannot stop
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a port in use is known before a model is loaded. Port 0: any free one.

    Raises `UsageError` for an address that is not this machine's, `BareloopError` for a port that cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise UsageError(f"--host {quote(host)}: no such address; use 127.0.0.1, or 0.0.0.0 for all networks") from None
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)  # localhost: 127.0.0.1
    # asyncio sets TCP_NODELAY only if the protocol is named; without it each streamed answer begins 40 ms later.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere it would let two servers have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if isinstance(error, PermissionError):
            raise BareloopError(f"--port {port}: only root may use it; use one from 1024 on, such as 8000") from None
        if error.errno in _ADDRESS_IN_USE:
            raise BareloopError(
                f"port {port} on {host} is in use; stop the program that has it, or add --port {port + 1}, or "
                "--port 0 for any free one"
            ) from None
        raise UsageError(f"--host {quote(host)}: {error.strerror}; use an address of this machine") from None
    listener.setblocking(False)
    return listener


_ADDRESS_IN_USE = (98, 48, 10048)  # EADDRINUSE on Linux, macOS, Windows


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Respond with an error, after which the connection is closed."""
    error.headers["connection"] = "close"
    await respond(error)(scope, receive, send)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether a message of uvicorn or asyncio tells anything.

    Not that requests were cancelled, which we did; nor that a client has left, or has asked for a WebSocket.
    """
    is_cancelled = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not is_cancelled and not record.getMessage().startswith(OF_NO_INTEREST)
