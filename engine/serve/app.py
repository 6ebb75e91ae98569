"""The HTTP API as an ASGI application: paths, and what stands before them."""

from __future__ import annotations

from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from engine.runtime.errors import BareloopError
from engine.serve.endpoints import models, tokens
from engine.serve.endpoints.chat import chat_completions
from engine.serve.endpoints.completions import completions
from engine.serve.endpoints.embeddings import embeddings
from engine.serve.failures import any_error, api_error, http_exception, report
from engine.serve.protocol.errors import ApiError
from engine.serve.security import Guard
from engine.serve.state import ServerState

POST, GET = ["POST"], ["GET"]
ROUTES = (
    ("/v1/chat/completions", chat_completions, POST),
    ("/chat/completions", chat_completions, POST),
    ("/v1/chat/completions/input_tokens", tokens.count_tokens, POST),
    ("/chat/completions/input_tokens", tokens.count_tokens, POST),
    ("/v1/completions", completions, POST),
    ("/v1/embeddings", embeddings, POST),
    ("/v1/models", models.models, GET),
    ("/models", models.models, GET),
    ("/v1/models/{id:path}", models.model, GET),
    ("/tokenize", tokens.tokenize, POST),
    ("/detokenize", tokens.detokenize, POST),
    ("/tokenizer_info", tokens.tokenizer_info, GET),
    ("/health", models.health, GET),
    ("/metrics", models.metrics, GET),
    ("/props", models.props, GET),
    ("/openapi.json", models.description, GET),
)


def make_app(state: ServerState) -> ASGIApp:
    """The application for one server."""
    app = Starlette(
        routes=[Route(path, endpoint, methods=methods) for path, endpoint, methods in ROUTES],
        exception_handlers={
            HTTPException: http_exception,
            ApiError: api_error,
            BareloopError: api_error,
            Exception: any_error,
        },
    )
    app.router.redirect_slashes = False
    app.state.server = state
    return Guard(app, state.security, partial(report, state.observer))
