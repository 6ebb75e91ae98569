"""A small app behind the middleware, and requests to it by the ASGI protocol itself."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import dataclass, field
from types import SimpleNamespace

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from engine.decoding.scheduling.request import QueueFullError
from engine.runtime.errors import BareloopError, UsageError
from engine.serve.failures import any_error, api_error, http_exception
from engine.serve.metrics import Metrics
from engine.serve.protocol.errors import ApiError, unavailable
from engine.serve.request_log import Observer
from engine.serve.security import Guard, Security

RAISED = {
    "api": ApiError(418, "short and stout", param="pot", code="teapot"),
    "usage": UsageError("top_p = 2: use less"),
    "full": QueueFullError("8 requests are waiting"),
    "memory": MemoryError("no more"),
    "window": ApiError(400, "too long", code="context_length_exceeded", extra={"n_ctx": 256}),
    "draining": unavailable("the server is stopping"),
    "secret": RuntimeError("the secret of line 7"),
}


@dataclass
class Answer:
    """A response, in parts."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def error(self):
        return json.loads(self.body)["error"]


def make_app():
    async def echo(request):
        return JSONResponse({"size": len(await request.body()), "scope": request.state.scope})

    async def fail(request):
        raise RAISED[request.path_params["kind"]]

    async def get(request):
        return JSONResponse({"scope": request.state.scope})

    async def break_off(request):
        async def pieces():
            yield b"data: 1\n\n"
            raise RuntimeError("in the middle")

        return StreamingResponse(pieces())

    async def fail_later(request):
        async def task():
            raise RuntimeError("in the background")

        return JSONResponse({}, background=BackgroundTask(task))

    routes = [
        Route("/v1/echo", echo, methods=["POST"]),
        Route("/health", get),
        Route("/v1/models", get),
        Route("/fail/{kind}", fail),
        Route("/stream", break_off),
        Route("/later", fail_later),
    ]
    handlers = {HTTPException: http_exception, ApiError: api_error, BareloopError: api_error, Exception: any_error}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.state.server = SimpleNamespace(observer=Observer(Metrics([]), output=io.StringIO()))
    return app


def request(app, method, path, headers=(), body=(), chunks_end=True, **security):
    """One request. `headers`: a mapping or pairs; Host is localhost:8000 unless given."""
    pairs = [*(headers.items() if isinstance(headers, dict) else headers)]
    if "host" not in dict(pairs):
        pairs.insert(0, ("host", "localhost:8000"))
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in body]
    if chunks_end:
        messages.append({"type": "http.request", "body": b"", "more_body": False})
    answer = Answer()

    async def receive():
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def send(message):
        if message["type"] == "http.response.start":
            names = [name.decode() for name, _ in message["headers"]]
            assert len(names) == len({*names})
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in pairs if value is not None],
        "scheme": "http",
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
    }
    asyncio.run(asyncio.wait_for(Guard(app, Security(**security))(scope, receive, send), 60))
    return answer
