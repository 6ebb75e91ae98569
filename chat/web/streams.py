"""Server-sent events: what a tab has yet to be told, and the response that tells it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.serve.endpoints.client import PING, STREAM_HEADERS, cancel, disconnected

MANY_WAITING = 20  # events, at which a snapshot replaces those before it
MAX_WAITING = 1000  # events, after which a tab gets the whole state instead
PAUSE = 0.01  # seconds between two writes to a tab, so that pieces of a fast reply are sent together
PING_SECONDS = 15.0
SURE = 1.0  # seconds after which a tab that is still there has got what was sent: it takes a while to see that one left
# What a snapshot of the same conversation makes unnecessary.
TOLD_BY_SNAPSHOT = ("snapshot", "started", "piece")


def encode(content: Any) -> bytes:
    """JSON as UTF-8, without line breaks. Half of a UTF-16 pair, which UTF-8 cannot have, becomes a question mark."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")


@dataclass(frozen=True)
class Event:
    """Something to tell: its type, the conversation that it is about, and further members, as JSON without braces."""

    kind: str
    conversation: str | None = None
    members: bytes = b""
    is_lasting: bool = False  # no snapshot tells it, so that a slow tab gets it all the same
    on_sent: Callable[[], None] | None = None  # called when a tab has got it

    def encoded(self) -> bytes:
        """The event in the stream's format."""
        parts = [b'"type":' + encode(self.kind)]
        if self.conversation is not None:
            parts.append(b'"conversation":' + encode(self.conversation))
        if self.members:
            parts.append(self.members)
        return b"data: {" + b",".join(parts) + b"}\n\n"


def event(type_: str, conversation: str | None = None, /, **members: Any) -> Event:
    """An event with these members."""
    return Event(type_, conversation, encode(members)[1:-1])


@dataclass(frozen=True)
class PieceEvent(Event):
    """The next piece of a reply, with its tokens as JSON."""

    kind: str = "piece"
    text: str = ""
    reasoning: str = ""
    tokens: tuple[bytes, ...] = ()

    def encoded(self) -> bytes:
        return Pieces(self).encoded()


class Pieces:
    """Pieces of one conversation that wait together, and are sent as one."""

    kind, is_lasting, on_sent = "piece", False, None

    def __init__(self, first: PieceEvent) -> None:
        self.conversation = first.conversation
        self._pieces = [first]

    def add(self, piece: PieceEvent) -> None:
        """Let the next one wait, too. They are joined only once, as joining each would take ever longer."""
        self._pieces.append(piece)

    def encoded(self) -> bytes:
        """The event in the stream's format."""
        text, reasoning = "".join(each.text for each in self._pieces), "".join(each.reasoning for each in self._pieces)
        members = encode({"text": text, "reasoning": reasoning})[1:-1]
        tokens = b",".join(token for each in self._pieces for token in each.tokens)
        return Event(self.kind, self.conversation, members + b',"tokens":[' + tokens + b"]").encoded()


class Tab:
    """A tab of a browser: the conversations that it shows, and what it has yet to be told."""

    def __init__(self, conversations: Sequence[str], greet: Callable[[Tab], None]) -> None:
        """`greet` pushes the whole state: at first, and after a tab has fallen behind."""
        self.conversations = tuple(conversations)
        self.is_closed = False
        self._greet = greet
        self._waiting: list[Event | Pieces] = []
        self._pieces: dict[str | None, Pieces] = {}  # that wait and are the last of their conversation
        self._sending: list[Event | Pieces] = []
        self._has_news = asyncio.Event()

    def push(self, event: Event) -> None:
        """Tell this next. For a tab that reads slowly, what it replaces is dropped.

        The order of what is told about one conversation stays; pieces that wait are joined.
        """
        if event.kind == "snapshot" and len(self._waiting) >= MANY_WAITING:
            self._drop(lambda each: each.conversation == event.conversation and each.kind in TOLD_BY_SNAPSHOT)
        elif event.kind == "conversations":
            self._drop(lambda each: each.kind == "conversations")
        if not isinstance(event, PieceEvent):
            self._pieces.pop(event.conversation, None)
            self._waiting.append(event)
        elif event.conversation in self._pieces:
            self._pieces[event.conversation].add(event)
        else:
            self._pieces[event.conversation] = Pieces(event)
            self._waiting.append(self._pieces[event.conversation])
        if len(self._waiting) > MAX_WAITING:
            self._drop(lambda each: not each.is_lasting)
            del self._waiting[: -MAX_WAITING // 2]
            self._greet(self)
        self._has_news.set()

    def _drop(self, is_unnecessary: Callable[[Event | Pieces], bool]) -> None:
        """Drop what waits and need not be told."""
        self._waiting = [each for each in self._waiting if not is_unnecessary(each)]
        kept = {id(each) for each in self._waiting}
        self._pieces = {key: pieces for key, pieces in self._pieces.items() if id(pieces) in kept}

    def close(self) -> None:
        """End the stream after what is waiting."""
        self.is_closed = True
        self._has_news.set()

    async def take(self) -> bytes:
        """All that is waiting, as soon as there is anything. Nothing: the stream ends."""
        await self._has_news.wait()
        self._has_news.clear()
        self._sending, self._waiting, self._pieces = self._waiting, [], {}
        return b"".join(event.encoded() for event in self._sending)

    def sent(self) -> list[Callable[[], None]]:
        """What was taken last has been sent. -> what to call when the tab has got it"""
        calls = [each.on_sent for each in self._sending if each.on_sent is not None]
        self._sending = []
        return calls


class Stream(Response):
    """The response to a tab, until it leaves or the server ends."""

    def __init__(self, tab: Tab, enter: Callable[[Tab], None], leave: Callable[[Tab], None]) -> None:
        """`enter` and `leave` are called when the response begins and ends."""
        self.tab, self.enter, self.leave = tab, enter, leave
        self.background = None
        self._timers: list[asyncio.TimerHandle] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await send({"type": "http.response.start", "status": 200, "headers": list(STREAM_HEADERS)})
        self.enter(self.tab)
        tasks = [asyncio.ensure_future(self._write(send)), asyncio.ensure_future(disconnected(receive))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
        finally:
            for timer in self._timers:
                timer.cancel()
            self.leave(self.tab)
            await cancel(*tasks)

    async def _write(self, send: Send) -> None:
        while not self.tab.is_closed:
            try:
                async with asyncio.timeout(PING_SECONDS):
                    body = await self.tab.take()
            except TimeoutError:
                body = PING
            await send({"type": "http.response.body", "body": body, "more_body": True})
            self._timers += [asyncio.get_running_loop().call_later(SURE, call) for call in self.tab.sent()]
            await asyncio.sleep(PAUSE)
        await send({"type": "http.response.body", "body": await self._rest(), "more_body": False})

    async def _rest(self) -> bytes:
        self.tab.close()
        return await self.tab.take()
