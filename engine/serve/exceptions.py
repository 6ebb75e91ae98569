"""Exceptions -> errors of the API: what clients are told, and what is only written to the log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from engine.runtime.errors import BareloopError, is_out_of_memory, quote
from engine.serve.protocol.errors import ApiError, unavailable

if TYPE_CHECKING:
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
    if isinstance(error, ApiError):
        return error

    from starlette.requests import ClientDisconnect

    from engine.decoding.scheduling.request import ClosedError, QueueFullError

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
