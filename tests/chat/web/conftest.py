"""A page of a scripted model, and browsers without a screen: they send requests and read events."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from chat.__main__ import main, parser
from chat.web import program
from chat.web.program import PageServer
from tests.chat.web.scripted import GUARD, KEY, RunningPage


class Listener:
    """A tab: its stream of events is read in a thread."""

    def __init__(self, client: httpx2.Client, *conversations: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.has_ended = False
        self._changed = threading.Condition()
        self._context = client.stream("GET", "/web/events", params={"conversation": list(conversations)})
        self._response = self._context.__enter__()
        assert self._response.status_code == 200, self._response.read()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for line in self._response.iter_lines():
                if line.startswith("data: "):
                    with self._changed:
                        self.events.append(json.loads(line.removeprefix("data: ")))
                        self._changed.notify_all()
        except httpx2.HTTPError:  # the connection was closed
            pass
        with self._changed:
            self.has_ended = True
            self._changed.notify_all()

    def wait(self, condition: Callable[[Listener], Any]) -> Any:
        """Wait for a condition on this listener, and return what it is then."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self), GUARD), self.events[-5:]
            return condition(self)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of a type so far."""
        return [event for event in self.events if event["type"] == kind]

    def listed(self) -> list[dict[str, Any]]:
        """The conversations of the last list that came; none before the first."""
        lists = self.of("conversations")
        return lists[-1]["conversations"] if lists else []

    def next(self, kind: str, count: int = 1) -> dict[str, Any]:
        """Wait for the `count`th event of a type, and return it."""
        return self.wait(lambda tab: tab.of(kind)[count - 1] if len(tab.of(kind)) >= count else None)

    def rest(self, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Wait for a snapshot in which nothing runs and the condition holds, and return its value."""

        def last(tab: Listener) -> dict[str, Any] | None:
            values = [event["value"] for event in tab.of("snapshot")]
            return values[-1] if values and values[-1]["running"] is None and condition(values[-1]) else None

        return self.wait(last)

    def text(self) -> str:
        """The text of the reply that runs, or ran last: the snapshot's part and all pieces after it."""
        result = ""
        for event in self.events:
            if event["type"] == "snapshot" and event["value"]["running"] is not None:
                result = event["value"]["running"]["text"]
            elif event["type"] == "started":
                result = event["beginning"]
            elif event["type"] == "piece":
                result += event["text"]
        return result

    def close(self) -> None:
        self._response.close()


class Browser:
    """A client with the page's cookie."""

    def __init__(self, base: str, key: str = KEY) -> None:
        self.http = httpx2.Client(base_url=base, timeout=GUARD)
        self.http.get("/", params={"key": key})
        self._tabs: list[Listener] = []

    def post(self, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
        answer = self.http.post(f"/web/{path}", json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def get(self, path: str, status: int = 200) -> Any:
        answer = self.http.get(f"/web/{path}")
        assert answer.status_code == status, answer.text
        return answer.json()

    def new(self, **body: Any) -> str:
        return self.post("conversations", **body)["id"]

    def line(self, id: str, line: str, status: int = 202, tab: str = "me") -> dict[str, Any]:
        return self.post(f"conversations/{id}/line", status, line=line, tab=tab)

    def listen(self, *conversations: str) -> Listener:
        self._tabs.append(Listener(self.http, *conversations))
        return self._tabs[-1]

    def chat(self, id: str, *messages: str) -> dict[str, Any]:
        """Send messages, each after the reply to the one before. -> the snapshot after the last"""
        tab = self.listen(id)
        value = tab.next("snapshot")["value"]
        for message in messages:
            turns = len(value["turns"]) + 1
            self.line(id, message)
            value = tab.rest(lambda value, turns=turns: len(value["turns"]) == turns)
        tab.close()
        return value

    def close(self) -> None:
        for tab in self._tabs:
            tab.close()
        self.http.close()


def opened(address: str) -> Browser:
    """A browser that has opened the address of a page."""
    parts = urlsplit(address)
    return Browser(f"http://{parts.netloc}", parse_qs(parts.query)["key"][0])


@pytest.fixture
def data(tmp_path, monkeypatch) -> Iterator[Any]:
    """Where conversations are kept."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    yield tmp_path / "data" / "bareloop"


@pytest.fixture(scope="module")
def ending() -> Iterator[list[RunningPage]]:
    """Servers that are told to end. That takes them a moment, for which no test waits."""
    pages: list[RunningPage] = []
    yield pages
    for page in pages:
        page.close()


@pytest.fixture
def page(data, ending) -> Iterator[RunningPage]:
    page = RunningPage()
    yield page
    page.script.go()
    page.server.stop()
    ending.append(page)


@pytest.fixture
def browser(page: RunningPage) -> Iterator[Browser]:
    browser = Browser(page.base)
    yield browser
    browser.close()


@pytest.fixture
def start(data, monkeypatch):
    """Start the program in a thread of this process: start(*flags) -> the address that it shows."""
    addresses: queue.Queue[str] = queue.Queue()
    servers: list[PageServer] = []
    threads: list[threading.Thread] = []

    def serve(server: PageServer, listener, summarizes: bool) -> None:
        """`engine.serve.server.run`, which ends the process if a thread is at work in the end."""
        servers.append(server)
        with listener:
            server.run(sockets=[listener])
        server.state.engines.close()

    def begin(*flags: str) -> str:
        options = parser().parse_args(["--web", "--port", "0", "--no-browser", *flags])
        threads.append(threading.Thread(target=main, args=(options,)))
        threads[-1].start()
        return addresses.get(timeout=GUARD)

    monkeypatch.setattr(program, "run", serve)
    monkeypatch.setattr(program, "_show", lambda page, api, opens_browser: addresses.put(page))
    yield begin
    for server in servers:
        server.stop()
    for thread in threads:
        thread.join(GUARD)
        assert not thread.is_alive()
