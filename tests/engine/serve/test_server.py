"""The process: draining, its end, its socket."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from engine.runtime.errors import BareloopError, UsageError
from engine.serve.metrics import Metrics
from engine.serve.request_log import Observer
from engine.serve.server import Server, listen, serve
from engine.serve.state import ServerState
from engine.serve.threads import in_thread

GUARD = 60.0  # seconds: a hang, not a slow machine


class FakeEngines:
    """One model, whose loading ends when it is told to."""

    def __init__(self) -> None:
        self.names = ["demo"]
        self.may_load = threading.Event()
        self.error: Exception | None = None
        self.closed = False

    async def preload(self) -> None:
        await in_thread(lambda: self.may_load.wait(GUARD))
        if self.error is not None:
            raise self.error

    def close(self) -> bool:
        self.closed = True
        return True


class App:
    """/slow answers when it is told to, anything else at once."""

    def __init__(self) -> None:
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        self.was_cancelled = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            self.has_begun.set()
            try:
                while not self.may_end.is_set():
                    await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                self.was_cancelled = True
                raise
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})


class Running:
    """A server in a thread."""

    def __init__(self, drain: float) -> None:
        self.app, self.engines, self.output = App(), FakeEngines(), io.StringIO()
        self.is_ready = threading.Event()
        observer = Observer(Metrics(["demo"]), output=self.output)
        self.state = ServerState(self.engines, observer, SimpleNamespace())
        self.server = Server(self.app, self.state, drain, 100)
        listener = listen("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.pool = ThreadPoolExecutor(8)
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=GUARD, trust_env=False)
        self.result = self.pool.submit(serve, self.server, listener, "127.0.0.1")

    def get(self, path: str) -> Future[httpx2.Response]:
        return self.pool.submit(self.client.get, path)

    def begin_slow(self) -> Future[httpx2.Response]:
        answer = self.get("/slow")
        assert self.app.has_begun.wait(GUARD)
        return answer

    def end(self) -> str:
        """Wait for the end. -> what was printed"""
        self.result.result(GUARD)
        return self.output.getvalue()


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    servers = []

    def create(drain: float = GUARD) -> Running:
        servers.append(Running(drain))
        return servers[-1]

    yield create
    for running in servers:
        running.engines.may_load.set()
        running.app.may_end.set()
        running.server.stop()
        running.server.stop()
        running.pool.shutdown()
        running.client.close()


def test_requests_are_answered_while_the_model_is_loaded_and_the_ready_line_comes_after(start):
    running = start()
    assert running.get("/health").result().text == "ok"
    assert "serving" not in running.output.getvalue()
    running.engines.may_load.set()
    running.begin_slow()
    running.app.may_end.set()
    running.server.stop()
    lines = running.end().splitlines()
    assert running.engines.closed
    assert "requests in" in lines[-1]


def test_the_ready_line_names_models_and_address(start):
    running = start()
    ready = threading.Event()
    note = running.state.observer.note
    running.state.observer.note = lambda text: (note(text), ready.set())
    running.engines.may_load.set()
    assert ready.wait(GUARD)
    assert running.output.getvalue().endswith(f"  serving demo on http://127.0.0.1:{running.port}/v1\n")


def test_while_draining_running_requests_finish_and_new_ones_are_refused(start):
    running = start()
    slow = running.begin_slow()
    running.server.stop()
    refused = running.get("/v1/models").result()
    assert refused.status_code == 503
    assert refused.headers["connection"] == "close"
    assert refused.json()["error"]["type"] == "unavailable_error"
    assert running.get("/health").result().status_code == 200  # the app's own answer, which tells of draining
    assert not slow.done()
    running.app.may_end.set()
    assert slow.result().text == "ok"
    running.end()
    assert not running.app.was_cancelled


def test_after_the_time_for_draining_requests_are_cancelled_and_told(start):
    running = start(drain=0.0)
    slow = running.begin_slow()
    running.server.stop()
    assert slow.result().status_code == 503
    assert "shut down" in slow.result().json()["error"]["message"]
    assert "ending: 1 request may go on for 0 s, until a second signal" in running.end()
    assert running.app.was_cancelled


def test_the_second_signal_ends_at_once(start):
    running = start()
    running.begin_slow()
    running.server.stop()
    running.server.stop()
    running.end()
    assert running.app.was_cancelled


def test_a_first_model_that_cannot_be_loaded_ends_the_server_with_its_error(start):
    running = start()
    running.engines.error = BareloopError("demo is broken")
    running.engines.may_load.set()
    with pytest.raises(BareloopError, match=r"^demo is broken$"):
        running.end()
    assert running.engines.closed


def test_the_death_of_an_engine_ends_the_server_with_one_line(start):
    running = start()
    slow = running.begin_slow()
    running.engines.on_death(SimpleNamespace(name="demo", error=ZeroDivisionError("oh")))
    running.app.may_end.set()
    assert slow.result().text == "ok"  # requests can still tell of the failure
    with pytest.raises(BareloopError, match=r"^the engine of demo has ended: ZeroDivisionError: oh$"):
        running.end()


def test_a_port_in_use_is_named_with_a_way_out():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(BareloopError, match=rf"port {port} on 127\.0\.0\.1 is in use.*--port {port + 1}"):
            listen("127.0.0.1", port)


def test_an_address_that_is_not_this_machines_is_refused():
    for host in ("203.0.113.7", "no.such.host.invalid", "a" * 300):
        with pytest.raises(UsageError, match="--host"):
            listen(host, 0)


def test_localhost_is_127_0_0_1():
    with listen("localhost", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # asyncio sets TCP_NODELAY only then
        assert listener.getsockname()[0] == "127.0.0.1"
