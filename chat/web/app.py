"""The page as an ASGI application: its paths, its files, its errors, and beside them OpenAI's API."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from chat.web import endpoints, pages
from chat.web.access import Door, Headers
from chat.web.library import Library
from engine.runtime.errors import BareloopError, quote
from engine.serve.endpoints.models import health
from engine.serve.failures import respond
from engine.serve.protocol.errors import ApiError
from engine.serve.security import Guard, Security
from engine.serve.state import ProcessState

LOG = logging.getLogger("bareloop.chat")
MAX_BODY = 64_000_000  # bytes, of a message with its images, or of an imported conversation
GET, POST = ["GET"], ["POST"]
OWN_PATHS = ("/static/", "/web/")  # the others are the API's, if it is served
ROUTES = (
    ("/", pages.index, GET),
    ("/static/{name:path}", pages.static, GET),
    ("/web/state", endpoints.state, GET),
    ("/web/events", endpoints.events, GET),
    ("/web/import", endpoints.import_, POST),
    ("/web/search", endpoints.search, GET),
    ("/web/deleted", endpoints.deleted, GET),
    ("/web/conversations", endpoints.conversations, GET),
    ("/web/conversations", endpoints.create, POST),
    *((f"/web/conversations/{{id}}/{name}", endpoint, POST) for name, endpoint in endpoints.ACTIONS.items()),
    *((f"/web/conversations/{{id}}/{name}", endpoint, GET) for name, endpoint in endpoints.VIEWS.items()),
    ("/web/conversations/{id}/images/{image}", endpoints.image, GET),
    ("/health", health, GET),
)


@dataclass(frozen=True)
class Site:
    """What the endpoints share. `api`: the address of the API, if it is served."""

    library: Library
    api: str | None = None


def make_app(site: Site, state: ProcessState, key: str, port: int, api: ASGIApp | None = None) -> ASGIApp:
    """The application of one page. `api`: answers all paths that are not the page's."""
    routes = [Route(path, endpoint, methods=methods) for path, endpoint, methods in ROUTES]
    handlers = {HTTPException: _http_exception, ApiError: _refusal, BareloopError: _refusal, Exception: _any_error}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    app.state.server, app.state.site = state, site
    page_app = Headers(Guard(Door(app, key, port), Security(max_body=MAX_BODY)))

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        is_own = scope.get("path") == "/" or str(scope.get("path", "")).startswith(OWN_PATHS)
        await (page_app if is_own or api is None else api)(scope, receive, send)

    return front


async def _http_exception(request: Request, error: Exception) -> Response:
    """For Starlette's own refusals: no such path, or another method."""
    assert isinstance(error, HTTPException)
    message = f"there is no {quote(request.url.path)}" if error.status_code == 404 else error.detail
    return respond(ApiError(error.status_code, message, headers=error.headers))


async def _refusal(_: Request, error: Exception) -> Response:
    return respond(error if isinstance(error, ApiError) else ApiError(400, str(error)))


async def _any_error(request: Request, error: Exception) -> Response:
    """For all that nobody expected. Starlette raises it again, and `Guard` stops those that are noted here."""
    request.scope.setdefault("state", {})["failure"] = error
    text = f"{type(error).__name__}: {error}"
    LOG.error("%s %s: %s", request.method, request.url.path, text, exc_info=LOG.isEnabledFor(logging.DEBUG))
    return respond(ApiError(500, f"internal error, see the program's output: {type(error).__name__}"))
