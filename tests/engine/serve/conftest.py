"""A server of the demo model on a free port, in a thread of this process, and clients of it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx2
import pytest

from engine.llm import LLM
from engine.serve.app import make_app
from engine.serve.engine import EngineOptions
from engine.serve.engines import Engines
from engine.serve.metrics import Metrics
from engine.serve.request_log import Observer
from engine.serve.security import Security
from engine.serve.server import Server, listen
from engine.serve.state import Limits, ServerState
from tests.engine.serve.guarded_app import Answer, request
from tests.engine.serve.guarded_app import make_app as guarded_app


class RunningServer:
    """A server, and what the tests look at inside it."""

    def __init__(self, models: dict[str, str], limits: Limits, **options: Any) -> None:
        metrics = Metrics(list(models))
        self.engines = Engines(models, EngineOptions(**options), observe=metrics.step)
        metrics.watch(lambda: self.engines.loaded)
        self.observer = Observer(metrics, quiet=True)
        self.state = ServerState(self.engines, self.observer, Security(), limits)
        self.server = Server(make_app(self.state), self.state, drain_seconds=0, max_connections=256)
        listener = listen("127.0.0.1", 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)  # so that little suffices to fill it
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        ready = threading.Event()
        self.server.on_ready = ready.set
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve(sockets=[listener])))
        self.thread.start()
        assert ready.wait(120), self.server.failure

    @property
    def scheduler(self) -> Any:
        """The scheduler of the first model."""
        return self.engines.loaded[0].scheduler

    def close(self) -> None:
        """End it."""
        self.server.should_exit = True
        self.thread.join(60)
        self.engines.close()


@pytest.fixture(scope="session")
def running() -> Iterator[RunningServer]:
    server = RunningServer({"demo": "demo"}, Limits(default_new_tokens=256), context=1024)
    yield server
    server.close()


@pytest.fixture(scope="session")
def llm() -> LLM:
    """The same model in this process."""
    return LLM.load("demo")


@pytest.fixture
def client(running: RunningServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=running.url, timeout=120) as client:
        yield client


@pytest.fixture
def events(client: httpx2.Client) -> Callable[[str, dict[str, Any]], list[dict[str, Any]]]:
    """Post a request, and return the events of its stream."""

    def post(path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        answer = client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        *lines, last = [line for line in answer.text.split("\n\n") if line]
        assert last == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    return post


@pytest.fixture(scope="session")
def call() -> Callable[..., Answer]:
    """call(method, path, headers, body, **fields of Security): one request to a small app behind the middleware."""
    return partial(request, guarded_app())
