"""What the server tells of itself: models, health, metrics, properties, its API."""

from __future__ import annotations

from importlib import metadata

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine.serve.metrics import CONTENT_TYPE
from engine.serve.protocol import openapi
from engine.serve.protocol.errors import unavailable
from engine.serve.state import ProcessState, ServerState


async def models(request: Request) -> Response:
    """All models that requests may name, loaded or not."""
    state: ServerState = request.app.state.server
    return JSONResponse({"object": "list", "data": [state.engines.describe(name) for name in state.engines.names]})


async def model(request: Request) -> Response:
    """One model. Its id may have slashes, and must not be empty, though a request without a model has the first one."""
    state: ServerState = request.app.state.server
    if not request.path_params["id"]:
        raise HTTPException(404)
    return JSONResponse(state.engines.describe(state.engines.resolve(request.path_params["id"])))


async def health(request: Request) -> Response:
    """200 only while requests can be answered."""
    state: ProcessState = request.app.state.server
    if state.draining:
        raise unavailable("the server is shutting down")
    if (problem := state.engines.problem()) is not None:
        raise unavailable(problem)
    return JSONResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    """Counters and histograms for Prometheus."""
    state: ServerState = request.app.state.server
    return Response(state.observer.metrics.render(), media_type=CONTENT_TYPE)


async def props(request: Request) -> Response:
    """What llama.cpp's tools ask for. `?model=` chooses a model."""
    state: ServerState = request.app.state.server
    async with state.engines.use(state.engines.resolve(request.query_params.get("model"))) as engine:
        special = engine.llm.tokenizer.special_tokens
        content = {
            "default_generation_settings": {"n_ctx": engine.max_length, "params": dict(engine.llm.default_params)},
            "total_slots": 1 if engine.llm.is_encoder else engine.scheduler.max_rows,
            "model_path": engine.name,
            "chat_template": engine.template_source or "",
            "bos_token": special.get("bos_token", ""),
            "eos_token": special.get("eos_token", ""),
            "modalities": {"vision": engine.llm.images is not None, "audio": False},
        }
    return JSONResponse(content)


async def description(request: Request) -> Response:
    """The API in OpenAPI's format."""
    state: ServerState = request.app.state.server
    return JSONResponse(openapi.document(metadata.version("bareloop"), bool(state.security.keys)))
