"""stand-in"""
from __future__ import annotations
import logging
from starlette.requests import Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from engine.decoding.scheduling.request import QueueFullError
from engine.runtime.errors import BareloopError, is_out_of_memory
from engine.serve.protocol.errors import ApiError, unavailable

def as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError): return error
    if isinstance(error, QueueFullError): return ApiError(429, str(error), code="rate_limit_exceeded", headers={"retry-after": "1"})
    if isinstance(error, BareloopError): return ApiError(400, str(error))
    if is_out_of_memory(error): return unavailable("out of memory")
    logging.getLogger("bareloop").error("internal", exc_info=error)
    return ApiError(500, "internal error, see the server's log")
def _response(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, headers=error.headers)
async def api_error(request: Request, error: Exception) -> Response: return _response(as_api_error(error))
async def any_error(request: Request, error: Exception) -> Response: return _response(as_api_error(error))
async def http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _response(ApiError(error.status_code, error.detail, headers=dict(error.headers or {})))
