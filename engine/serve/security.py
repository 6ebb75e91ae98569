"""What every request passes first: Host, Origin, key, content type and size; and the headers of every response.

A web page that somebody opens can send requests to this machine. Their Host is the page's own name if that name was
made to resolve to 127.0.0.1 (DNS rebinding), their Origin says where they come from, and without permission a page can
send texts, forms and files, but not JSON. So all three are checked, and no other page may read a response.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.runtime.errors import UsageError, quote
from engine.serve.exceptions import as_api_error, name_of
from engine.serve.failures import respond
from engine.serve.protocol.common import MAX_TEXT
from engine.serve.protocol.errors import ApiError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 64_000_000  # bytes, most of which are images: text has a limit of its own, `MAX_TEXT`
MAX_BODIES = 512_000_000  # bytes of all requests that are running, beyond the first `MAX_TEXT` bytes of each
MAX_KEY = 4096  # bytes of a header with a key
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
OPEN_PATHS = ("/health",)  # for probes, which have no key
AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([0-9]{1,5}))?")
ORIGIN = re.compile(rf"(https?)://{AUTHORITY.pattern}")
REQUEST_ID = re.compile(r"[!-~]{1,128}")
HEADER_NAMES = re.compile(r"[A-Za-z0-9_, -]{1,2000}")


@dataclass(frozen=True)
class Security:
    """Who may use the server, and how much they may send.

    `allowed_hosts`: names of this server besides localhost, with a port or for any. `allowed_origins`: pages of other
    servers, such as https://chat.example. `keys`: without any, nobody needs one. `max_body`: bytes. `max_bodies`: bytes
    of all running requests, see `MAX_BODIES`. `read_timeout`: seconds in which a body must arrive.
    """

    allowed_hosts: Sequence[str] = ()
    allowed_origins: Sequence[str] = ()
    keys: Sequence[str] = field(default=(), repr=False)
    max_body: int = MAX_BODY
    max_bodies: int = MAX_BODIES
    read_timeout: float = 60.0

    def __post_init__(self) -> None:
        for host in self.allowed_hosts:
            if not AUTHORITY.fullmatch(_bracketed(host)):
                raise UsageError(f"{quote(host)} is not a host: use a name such as box.example, or box.example:8000")
        for origin in self.allowed_origins:
            if not ORIGIN.fullmatch(origin.lower()):
                raise UsageError(f"{quote(origin)} is not an origin: use one such as https://chat.example")
        for key in self.keys:
            if not re.fullmatch(r"[!-~]+", key) or len(key) > MAX_KEY:
                raise UsageError(f"an API key is up to {MAX_KEY:,} ASCII characters without spaces, not {len(key):,}")


class Guard:
    """ASGI middleware, the outermost: it checks requests, and answers all that the app raises before a response."""

    def __init__(
        self, app: ASGIApp, security: Security, report: Callable[[Scope, ApiError], None] = lambda *_: None
    ) -> None:
        """`report` is told of the requests that are refused here."""
        self.app, self.security, self.report = app, security, report
        self.hosts = {*LOOPBACK, *map(_bracketed, security.allowed_hosts)}
        self.origins = {origin.lower() for origin in security.allowed_origins}
        self.digests = [_digest(key.encode()) for key in security.keys]
        self.large = Large(security.max_bodies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.setdefault("state", {})
        state["request_id"] = _request_id(scope)
        reply = Reply(send, state["request_id"])
        try:
            origin = self._check_sender(scope)
            if origin in self.origins:
                reply.allow(origin)
                if scope["method"] == "OPTIONS" and _header(scope, "access-control-request-method"):
                    await _allow_preflight(scope, reply)
                    return
            # A cache that all share would tell, by its speed, what others have asked.
            state["scope"] = None if scope["path"] in OPEN_PATHS else self._check_key(scope)
            with Body(scope, receive, self.security, self.large) as body:
                await self.app(scope, body.receive, reply.send)
        except Exception as error:
            if reply.has_begun and not reply.is_complete:
                raise  # the connection is closed, so that the client knows
            if not reply.has_begun:
                refusal = as_api_error(error, name_of(scope))
                self.report(scope, refusal)
                await respond(refusal)(scope, receive, reply.send)
            elif state.get("failure") is not error:  # which has been logged
                as_api_error(error, name_of(scope))

    def _check_sender(self, scope: Scope) -> str | None:
        """The Origin, None without. Raises `ApiError` for a host or an origin that is not allowed."""
        host = _header(scope, "host")
        if not host:
            raise ApiError(400, "a request needs a Host header")
        authority = AUTHORITY.fullmatch(host.lower())
        if authority is None or not {authority[0], authority[1]} & self.hosts:
            way_out = "use localhost, or start the server with --allow-host NAME"
            raise ApiError(403, f"the host {quote(host)} is not this server's: {way_out}", code="host_not_allowed")
        origin = _header(scope, "origin")
        if origin is None:
            return None
        origin = origin.lower()
        if origin not in self.origins and not _is_ours(origin, authority):
            way_out = "start the server with --allow-origin ORIGIN"
            raise ApiError(403, f"the origin {quote(origin)} is not allowed: {way_out}", code="origin_not_allowed")
        return origin

    def _check_key(self, scope: Scope) -> str | None:
        """A name for the key of a request, None if none is needed. Raises `ApiError` for a wrong or missing one."""
        if not self.digests:
            return None
        given = []
        if (authorization := _header(scope, "authorization")) is not None:
            kind, _, key = authorization.partition(" ")
            given += [key.strip()] if kind.lower() == "bearer" and key.strip() else []
        given += filter(None, [_header(scope, "x-api-key")])
        challenge = {"www-authenticate": "Bearer"}
        if not given:
            message = "this server needs an API key: send the header Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers=challenge)
        found = None
        for key in given:
            if len(key) <= MAX_KEY:  # longer ones are not even hashed
                digest = _digest(key.encode("latin-1"))
                for known in self.digests:  # all, so that the time does not tell which
                    if hmac.compare_digest(digest, known):
                        found = known
        if found is None:
            raise ApiError(401, "this API key is not one of the server's", code="invalid_api_key", headers=challenge)
        return found.hex()


class Large:
    """Memory for the large bodies of all running requests. Each keeps its own until it has been answered."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    def take(self, size: int) -> None:
        """Use so many bytes more. Raises `ApiError` 429 if there are not as many."""
        if self.used + size > self.limit:
            message = f"the bodies of the requests that are running have {self.used:,} bytes in all: try again later"
            raise ApiError(429, message, code="rate_limit_exceeded", headers={"retry-after": "1", **CLOSE})
        self.used += size


class Body:
    """The body of a request, as it arrives. Leaving it says that its bytes are no longer in memory.

    It is checked when the endpoint first asks for it, so that requests for which there is no endpoint get their 404 or
    405 and are never read.
    """

    def __init__(self, scope: Scope, receive: Receive, security: Security, large: Large) -> None:
        self._scope, self._receive, self._security, self._large = scope, receive, security, large
        self._deadline: float | None = None
        self._size = self._taken = 0
        self._is_complete = False

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self._large.used -= self._taken

    async def receive(self) -> Message:
        """The next message. Raises `ApiError` 408, 413 or 415."""
        if self._is_complete:
            return await self._receive()
        if self._deadline is None:
            self._check_headers()
            self._deadline = asyncio.get_running_loop().time() + self._security.read_timeout
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            seconds = self._security.read_timeout
            raise ApiError(408, f"the body did not arrive within {seconds:g} seconds", headers=CLOSE) from None
        self._size += len(message.get("body", b""))
        if self._size > self._security.max_body:
            raise self._too_large(self._size)
        if (missing := self._size - MAX_TEXT - self._taken) > 0:
            self._large.take(missing)
            self._taken += missing
        self._is_complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    def _check_headers(self) -> None:
        length = _header(self._scope, "content-length") or "0"
        if not re.fullmatch("[0-9]{1,18}", length):
            raise ApiError(400, f"Content-Length {quote(length)} is not a number", headers=CLOSE)
        if int(length) > self._security.max_body:
            raise self._too_large(int(length))
        if self._scope["method"] != "POST":
            return
        kind, *parameters = [part.strip() for part in (_header(self._scope, "content-type") or "").lower().split(";")]
        charset = next(
            (each.partition("=")[2].strip('"') for each in parameters if each.startswith("charset=")), "utf-8"
        )
        if kind != "application/json" or charset not in ("utf-8", "utf8", "us-ascii"):
            found = _header(self._scope, "content-type")
            raise ApiError(415, f"Content-Type {quote(found)}: use application/json, in UTF-8", headers=CLOSE)
        encoding = _header(self._scope, "content-encoding") or "identity"
        if encoding.lower() != "identity":  # a small body could become a very large one
            raise ApiError(415, f"Content-Encoding {quote(encoding)}: send the body uncompressed", headers=CLOSE)

    def _too_large(self, size: int) -> ApiError:
        limit = self._security.max_body
        return ApiError(413, f"the body has {size:,} bytes or more: use up to {limit:,}", headers=CLOSE)


class Reply:
    """The response, with the headers that all have."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._headers = [("x-request-id", request_id), ("x-content-type-options", "nosniff")]
        self.has_begun = self.is_complete = False

    def allow(self, origin: str) -> None:
        """Let pages of this origin read the response."""
        self._headers += [
            ("access-control-allow-origin", origin),
            ("access-control-expose-headers", "x-request-id, retry-after"),
            ("vary", "origin"),
        ]

    async def send(self, message: Message) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            added = [(name.encode(), value.encode("latin-1")) for name, value in self._headers]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        elif message["type"] == "http.response.body":
            self.is_complete = not message.get("more_body", False)
        await self._send(message)


CLOSE = {"connection": "close"}  # the rest of the body is not read


def _header(scope: Scope, name: str) -> str | None:
    """A header that may occur once; None without. Raises `ApiError` 400 if there are several."""
    values: list[bytes] = [value for key, value in scope["headers"] if key == name.encode()]
    if len(values) > 1:
        raise ApiError(400, f"there are {len(values)} {name} headers: send one")
    return values[0].decode("latin-1") if values else None


def _request_id(scope: Scope) -> str:
    """The client's own request id if it can be repeated safely, else a new one."""
    given = [value.decode("latin-1") for key, value in scope["headers"] if key == b"x-request-id"]
    return given[0] if len(given) == 1 and REQUEST_ID.fullmatch(given[0]) else f"req_{uuid.uuid4().hex}"


def _is_ours(origin: str, host: re.Match[str]) -> bool:
    """Whether a page comes from the server itself: from the name it was called by, or localhost with the same port."""
    parts = ORIGIN.fullmatch(origin)
    if parts is None:
        return False
    scheme, name, port = parts.groups()
    default = "443" if scheme == "https" else "80"
    is_same_name = name == host[1] or {name, host[1]} <= {*LOOPBACK}
    return is_same_name and (port or default) == (host[2] or default)


def _bracketed(host: str) -> str:
    """A host as it stands in headers: an IPv6 address in brackets."""
    return f"[{host.lower()}]" if host.count(":") > 1 and not host.startswith("[") else host.lower()


def _digest(key: bytes) -> bytes:
    """All of one length, so that comparing does not tell a key's."""
    return hashlib.sha256(key).digest()


async def _allow_preflight(scope: Scope, reply: Reply) -> None:
    """Answer a browser that asks what a page of an allowed origin may send."""
    names = _header(scope, "access-control-request-headers") or ""
    headers: list[tuple[str, Any]] = [("access-control-allow-methods", "GET, POST"), ("access-control-max-age", "600")]
    if HEADER_NAMES.fullmatch(names):
        headers.append(("access-control-allow-headers", names))
    encoded = [(name.encode(), value.encode()) for name, value in headers]
    await reply.send({"type": "http.response.start", "status": 204, "headers": encoded})
    await reply.send({"type": "http.response.body", "body": b""})
