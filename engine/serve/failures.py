"""Errors of the API -> responses, which are reported; and the handlers that Starlette calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.runtime.errors import quote
from engine.serve.exceptions import as_api_error, name_of
from engine.serve.protocol.errors import ApiError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Scope

    from engine.serve.request_log import Observer


def respond(error: ApiError) -> Response:
    """The response to a request that is refused or has failed."""
    from starlette.responses import JSONResponse

    return JSONResponse(error.body(), error.status, error.headers)


def report(observer: Observer, scope: Scope, error: ApiError) -> None:
    """Report a refused request that no endpoint has reported, unless it is a probe."""
    if scope["path"] != "/health":
        served = observer.started(scope["method"], scope["path"])
        served.fail(error)
        observer.finished(served)


def refuse(request: Request, error: ApiError) -> Response:
    """Respond to a request that no endpoint has reported, and report it."""
    report(request.app.state.server.observer, request.scope, error)
    return respond(error)


async def http_exception(request: Request, error: Exception) -> Response:
    """For Starlette's own refusals: no such path, or another method."""
    from starlette.exceptions import HTTPException

    assert isinstance(error, HTTPException)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    message, code = error.detail, None
    if error.status_code == 404:
        message, code = f"there is no {quote(request.url.path)}: /openapi.json lists the paths", "not_found"
    if error.status_code == 405 and "allow" in headers:
        headers["allow"] = ", ".join(sorted(headers["allow"].split(", ")))
        message = f"{quote(request.method)} is not possible for {quote(request.url.path)}: use {headers['allow']}"
        code = "method_not_allowed"
    return refuse(request, ApiError(error.status_code, message, code=code, headers=headers))


async def api_error(request: Request, error: Exception) -> Response:
    """For `ApiError` and `BareloopError`."""
    return refuse(request, as_api_error(error, name_of(request.scope)))


async def any_error(request: Request, error: Exception) -> Response:
    """For all other exceptions. Starlette raises them again, and `Guard` stops those that are noted here."""
    request.scope.setdefault("state", {})["failure"] = error
    return refuse(request, as_api_error(error, name_of(request.scope)))
