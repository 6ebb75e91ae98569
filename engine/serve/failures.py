"""Exceptions -> responses in OpenAI's shape. The handlers are for Starlette; `as_api_error` is for streams, too."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from engine.runtime.errors import BareloopError, is_out_of_memory, quote
from engine.serve.protocol.errors import ApiError, unavailable

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Scope

LOG = logging.getLogger("bareloop.server")
INTERNAL = "internal_error"  # the code of an exception that nobody expected


def as_api_error(error: Exception, request: str = "a request") -> ApiError:
    """What a client is told about an exception. A fault of the server is written to the log, and not told.

    `request` names the request in the log.
    """
    translated = translate(error)
    if is_out_of_memory(error):
        LOG.error("%s: out of memory: %s", request, error)
    elif translated.code == INTERNAL:
        LOG.error("%s: internal error", request, exc_info=error)
    return translated


def translate(error: BaseException) -> ApiError:
    """The error of the API for an exception."""
    from starlette.requests import ClientDisconnect

    from engine.decoding.scheduling.request import ClosedError, QueueFullError

    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="rate_limit_exceeded", headers={"retry-after": "1"})
    if is_out_of_memory(error):
        message = "memory has run out: try later, or with a shorter prompt or fewer replies"
        return ApiError(503, message, code="out_of_memory", headers={"retry-after": "5"})
    if isinstance(error, ClosedError):
        return unavailable("the model has just been unloaded: try again")
    if isinstance(error, BareloopError):
        return ApiError(400, str(error))
    if isinstance(error, ClientDisconnect):
        return ApiError(400, "the client has left before the end of its request")
    return ApiError(500, "internal error, see the server's log", code=INTERNAL)


def name_of(scope: Scope) -> str:
    """A request in the log: method, path and id."""
    return f"{scope['method']} {quote(scope['path'])} {scope.get('state', {}).get('request_id', '')}".rstrip()


def respond(error: ApiError) -> Response:
    """The response to a request that is refused or has failed."""
    from starlette.responses import JSONResponse

    return JSONResponse(error.body(), error.status, error.headers)


def refuse(request: Request, error: ApiError) -> Response:
    """Respond to a request that no endpoint has reported, and report it, unless it is a probe."""
    observer = request.app.state.server.observer
    if request.url.path != "/health":
        served = observer.started(request.method, request.url.path)
        served.fail(error)
        observer.finished(served)
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
