"""POST /tokenize, /detokenize, GET /tokenizer_info, and the number of tokens of a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine.serve.conversation import tools
from engine.serve.endpoints.answers import check_ids
from engine.serve.endpoints.chat import has_images, render
from engine.serve.endpoints.client import cache_scope, encode_large, prepare, read_body
from engine.serve.protocol.requests import ChatRequest, DetokenizeRequest, TokenizeRequest
from engine.serve.state import ServerState

if TYPE_CHECKING:
    from engine.serve.engine import Engine
    from engine.text.tokenizer import Tokenizer


async def tokenize(request: Request) -> Response:
    """Token ids of a text or a conversation, in the forms of vLLM, lm-evaluation-harness and llama.cpp."""
    state: ServerState = request.app.state.server
    body = await read_body(TokenizeRequest, request)
    choice, scope = tools.check(body.tools), cache_scope(request, None)
    has_pictures = body.messages is not None and has_images(body.as_chat())

    def tokens_of(engine: Engine) -> dict[str, Any]:
        tokenizer = engine.llm.tokenizer
        if body.messages is not None:
            ids = engine.public_ids(render(body.as_chat(), engine, choice, scope)[0].ids)
        else:
            ids = tokenizer.encode(body.text, body.adds_special_tokens)
        pieces = [{"id": token, "piece": piece(tokenizer, token)} for token in ids] if body.with_pieces else None
        return {"tokens": pieces or ids, "count": len(ids), "max_model_len": engine.max_length}

    async with state.engines.use(state.engines.resolve(body.model)) as engine:
        content = await prepare(request, lambda: tokens_of(engine), has_pictures)
    return Response(await encode_large(content), media_type="application/json")


def piece(tokenizer: Tokenizer, token: int) -> str | list[int]:
    """The text of a token, or its bytes if they are no text by themselves."""
    raw = tokenizer.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    state: ServerState = request.app.state.server
    body = await read_body(DetokenizeRequest, request)
    async with state.engines.use(state.engines.resolve(body.model)) as engine:
        check_ids(engine, body.tokens, "tokens")
        text = await prepare(request, lambda: engine.llm.tokenizer.decode(body.tokens, False))
    return JSONResponse({"prompt": text, "content": text})


async def tokenizer_info(request: Request) -> Response:
    """Special tokens and chat template, from which lm-evaluation-harness makes prompts. `?model=` chooses a model."""
    state: ServerState = request.app.state.server
    async with state.engines.use(state.engines.resolve(request.query_params.get("model"))) as engine:
        special = engine.llm.tokenizer.special_tokens
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        return JSONResponse({name: special.get(name) for name in names} | {"chat_template": engine.template_source})


async def count_tokens(request: Request) -> Response:
    """The number of tokens of a chat request's prompt, as llama.cpp's server counts them."""
    state: ServerState = request.app.state.server
    chat = await read_body(ChatRequest, request)
    choice, scope = tools.check(chat.tools, chat.tool_choice), cache_scope(request, chat.cache_salt)
    async with state.engines.use(state.engines.resolve(chat.model)) as engine:
        prompt, _ = await prepare(request, lambda: render(chat, engine, choice, scope), has_images(chat))
    return JSONResponse({"input_tokens": len(prompt.ids)})
