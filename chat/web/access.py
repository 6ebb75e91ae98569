"""Who may use the page: a browser that has opened the address with the key. Other users of the machine have not."""

from __future__ import annotations

import hmac
import secrets
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs

from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chat import store
from engine.runtime.errors import BareloopError
from engine.runtime.files import write_atomic
from engine.serve.protocol.errors import ApiError
from engine.serve.security import OPEN_PATHS

COOKIE_SECONDS = 400 * 86_400  # as long as browsers keep a cookie
KEY_BYTES = 24
SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data:; connect-src 'self'; style-src 'self'; script-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    ("content-security-policy", SECURITY_POLICY),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
)
REFUSAL = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>bareloop</title>{again}</head>
<body>
<h1>This page needs its key</h1>
<p>Open the address that <code>python -m chat --web</code> printed in the terminal;
it ends with <code>?key=…</code>.</p>
</body>
</html>
"""
# A browser withholds the cookie when the link is on another site; it sends it when this page opens the address again.
AGAIN = '<meta http-equiv="refresh" content="0">'


def page_key(may_write: bool) -> str:
    """The key of this user's pages: that of a private file, which is made if need be, so that cookies stay valid."""
    path = store.folder().parent / "page-key"
    with suppress(OSError, UnicodeDecodeError):
        key = path.read_text(encoding="ascii").strip()
        if len(key) >= KEY_BYTES and key.isprintable() and not path.stat().st_mode & 0o077:
            return key
    key = secrets.token_urlsafe(KEY_BYTES)
    if may_write:
        with suppress(BareloopError):  # then it is valid until the program ends
            _write(path, key)
    return key


def _write(path: Path, key: str) -> None:
    path.unlink(missing_ok=True)  # it may be readable by others
    write_atomic(path, f"{key}\n", private=True)


class Door:
    """ASGI middleware: lets a request in that has the key as a cookie, and sets it for an address with the key."""

    def __init__(self, app: ASGIApp, key: str, port: int) -> None:
        """`port`: that of the server; programs on several ports of one machine share cookies."""
        self.app, self.key, self.cookie = app, key, f"bareloop-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("key", [])
        if scope["path"] == "/" and scope["method"] == "GET" and given:
            await self._enter(given[0])(scope, receive, send)
        elif self._is_key(_cookie(scope, self.cookie)):
            await self.app(scope, receive, send)
        elif scope["path"] == "/":
            await _refuse(scope)(scope, receive, send)
        else:
            error = ApiError(401, "open the address that the program printed: it has a key", code="invalid_key")
            await JSONResponse(error.body(), error.status)(scope, receive, send)

    def _enter(self, given: str) -> Response:
        if not self._is_key(given):
            return HTMLResponse(REFUSAL.format(again=""), 401)
        response = RedirectResponse("/", 303)
        response.set_cookie(self.cookie, self.key, COOKIE_SECONDS, httponly=True, samesite="strict", path="/")
        return response

    def _is_key(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.key.encode())


class Headers:
    """ASGI middleware: the page's headers on all responses. `nosniff` comes from the server's own checks."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        await self.app(scope, receive, with_headers)


def _cookie(scope: Scope, name: str) -> str:
    """A cookie of a request; nothing without it. Those of other programs on this machine may be against the rules."""
    headers = "; ".join(value.decode("latin-1") for header, value in scope["headers"] if header == b"cookie")
    return cookie_parser(headers).get(name, "")


def _refuse(scope: Scope) -> Response:
    comes_from_elsewhere = (b"sec-fetch-site", b"cross-site") in scope["headers"]
    return HTMLResponse(REFUSAL.format(again=AGAIN if comes_from_elsewhere else ""), 401)
