"""A server on this machine whose answers a test decides, also those that no server should give."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """An answer. `content`: an object for JSON, a text, or the pieces of a stream.

    `breaks`: the connection is reset at the end, in place of a proper end.
    """

    content: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    breaks: bool = False


@dataclass(frozen=True)
class Asked:
    """A request: its path, the object in its body, and its headers."""

    path: str
    body: dict[str, Any]
    headers: Mapping[str, str]


def sse(*objects: Any, end: bool = True) -> list[str]:
    """A stream of events."""
    return [f"data: {json.dumps(value)}\n\n" for value in objects] + (["data: [DONE]\n\n"] if end else [])


def error(message: str, status: int, **headers: str) -> Answer:
    """A refusal in OpenAI's shape. Underscores in the names of headers are hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer({"error": {"message": message, "type": "x", "param": None, "code": None}}, status, named)


class FakeServer:
    """A running server. `asked` has its requests in order."""

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each answer takes 40 ms

            def reply(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(length)) if length else {}
                asked = Asked(self.path, body, dict(self.headers.items()))
                owner.asked.append(asked)
                with contextlib.suppress(OSError):  # the client has gone
                    owner._send(self, owner.answer(asked))

            do_GET = do_POST = reply  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def paths(self) -> list[str]:
        """The paths of all requests."""
        return [asked.path for asked in self.asked]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        if isinstance(answer.content, list):
            handler.send_response(answer.status)
            headers = {"Content-Type": "text/event-stream", "Connection": "close"} | dict(answer.headers)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            for piece in answer.content:
                handler.wfile.write(piece if isinstance(piece, bytes) else piece.encode())
                handler.wfile.flush()
            handler.close_connection = True
        else:
            text = answer.content if isinstance(answer.content, str) else json.dumps(answer.content)
            handler.send_response(answer.status)
            for name, value in answer.headers.items():
                handler.send_header(name, value)
            # a longer content than comes: the connection breaks in the middle
            handler.send_header("Content-Length", str(len(text.encode()) + answer.breaks))
            handler.end_headers()
            handler.wfile.write(text.encode())
        if answer.breaks:
            handler.wfile.flush()
            # with unsent data dropped, the end is a reset
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            handler.close_connection = True


@contextlib.contextmanager
def serving(answer: Callable[[Asked], Answer]) -> Iterator[FakeServer]:
    """Run a server while the block runs."""
    server = FakeServer(answer)
    try:
        yield server
    finally:
        server.close()


def unused_url() -> str:
    """The URL of a port of this machine at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
