"""What the page asks for and does: one function for each path below /web."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib import metadata
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from chat.commands import COMMANDS
from chat.context import STRATEGIES
from chat.web.agent import PageAgent
from chat.web.conversation import Conversation
from chat.web.exports import file_name, markdown, saved
from chat.web.images import received
from chat.web.snapshot import encode_tokens
from chat.web.streams import Stream, Tab, encode
from engine.cli.parser import SAMPLING_HELP
from engine.decoding.params import SamplingParams
from engine.runtime.errors import quote
from engine.serve.protocol.errors import ApiError, unavailable
from engine.serve.threads import in_thread

if TYPE_CHECKING:
    from chat.web.library import Library

MAX_TABS = 16  # conversations of one stream
MAX_LINE = 2_000_000  # characters
MAX_SEARCH = 2_000  # characters
LARGE_BODY = 100_000  # bytes, from which on a body is parsed in a thread


async def state(request: Request) -> Response:
    """What the page is drawn from: models, commands, parameters."""
    site = request.app.state.site
    models = site.library.models
    return JSONResponse(
        {
            "models": [{"name": name, "about": models.about(name)} for name in models.names],
            "commands": [
                {"name": command.name, "arguments": command.arguments, "help": command.help}
                for command in COMMANDS.values()
                if "page" in command.screens
            ],
            "parameters": parameters(),
            "strategies": list(STRATEGIES),
            "api": site.api,
            "version": metadata.version("bareloop"),
        }
    )


def parameters() -> list[dict[str, Any]]:
    """The sampling parameters that are numbers, as /set takes them."""
    numbers = [entry for entry in fields(SamplingParams) if type(entry.default) in (int, float)]
    rows = [(entry.name, type(entry.default), entry.default) for entry in numbers] + [("seed", int, None)]
    return [
        {
            "name": name,
            "kind": "integer" if kind is int else "number",
            "default": default,
            "help": SAMPLING_HELP.get(name, ""),
        }
        for name, kind, default in rows
    ]


async def events(request: Request) -> Response:
    """A tab's stream of events about the conversations that it names."""
    library = _library(request)
    ids = request.query_params.getlist("conversation")
    if len(ids) > MAX_TABS:
        raise ApiError(400, f"{len(ids)} conversations in one stream: use up to {MAX_TABS}")
    for id in ids:
        await (await library.find(id)).show()
    await library.tell_list()
    return Stream(Tab(ids, library.greet), library.enter, library.leave)


async def conversations(request: Request) -> Response:
    """The list of conversations."""
    return JSONResponse({"conversations": await _library(request).rows()})


async def search(request: Request) -> Response:
    """The conversations in which a text occurs."""
    text = request.query_params.get("q", "")
    if len(text) > MAX_SEARCH:
        raise ApiError(400, f"the text to search for has {len(text):,} characters: use up to {MAX_SEARCH:,}")
    return JSONResponse({"ids": await _library(request).search(text)})


async def deleted(request: Request) -> Response:
    """The conversations that can be restored."""
    return JSONResponse({"conversations": await _library(request).deleted()})


async def create(request: Request) -> Response:
    """A new conversation, or a copy of one."""
    library, body = _library(request), await _body(request)
    model, source = _text_or_none(body, "model"), _text_or_none(body, "copy_of")
    changes = {} if body.get("settings") is None else body["settings"]
    if not isinstance(changes, dict):
        raise ApiError(400, f"settings are {quote(changes)}: use an object")
    conversation = await library.create(model, source, changes)
    return JSONResponse({"id": conversation.id})


async def import_(request: Request) -> Response:
    """A conversation from a file that the browser has read."""
    body = await _body(request)
    name = _text_or_none(body, "name") or "the file"
    if "content" not in body:
        raise ApiError(400, "content is missing: send what the file has")
    conversation = await _library(request).import_(name, body["content"])
    return JSONResponse({"id": conversation.id})


async def line(request: Request) -> Response:
    """A message, which may have images, or a command. What comes of it is told as events."""
    conversation, body = await _conversation(request), await _body(request)
    text, tab = _text(body, "line"), _text_or_none(body, "tab")
    if len(text) > MAX_LINE:
        raise ApiError(413, f"the message has {len(text):,} characters: use up to {MAX_LINE:,}")
    sent = body.get("images") or []
    images = await in_thread(lambda: received(sent, conversation.agent.shown_images), "images") if sent else []
    if _library(request).is_closed:
        raise unavailable("the program is ending")
    conversation.handle(text, tab or "", images)
    return JSONResponse({}, 202)


async def stop(request: Request) -> Response:
    """End the running reply."""
    (await _conversation(request)).stop()
    return JSONResponse({}, 202)


async def delete(request: Request) -> Response:
    """Delete a conversation. The answer has the number of its turns that the memory has forgotten."""
    return JSONResponse({"forgotten": await _library(request).delete(request.path_params["id"])})


async def restore(request: Request) -> Response:
    """Take a deletion back."""
    await _library(request).restore(request.path_params["id"])
    return JSONResponse({})


async def export(request: Request) -> Response:
    """A conversation as a file: JSON, which can be imported, or Markdown."""
    kind = request.query_params.get("format", "json")
    if kind not in ("json", "markdown"):
        raise ApiError(400, f"format {quote(kind)}: use json or markdown")
    conversation = await _conversation(request)
    write = saved if kind == "json" else markdown
    content = await in_thread(lambda: write(conversation.agent), "export")
    name = file_name(conversation.agent, conversation.id) + (".json" if kind == "json" else ".md")
    headers = {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}
    return Response(content, media_type="application/json" if kind == "json" else "text/markdown", headers=headers)


async def image(request: Request) -> Response:
    """An image of a conversation."""
    images, id = (await _conversation(request)).agent.shown_images, request.path_params["image"]
    content, kind = await in_thread(lambda: images.find(id), "image")
    return Response(content, media_type=kind, headers={"cache-control": "no-store"})


async def tokens(request: Request) -> Response:
    """The tokens of a reply, with their probabilities."""
    conversation = await _conversation(request)
    turn = _number(request, "turn")

    def work(agent: PageAgent) -> bytes:
        return b",".join(encode_tokens(agent.session.tokens_of(turn)))

    return _joined(b'"tokens":[' + await conversation.compute(work) + b'],"first":0')


async def window(request: Request) -> Response:
    """The tokens that the model sees, and which of them were cached for the last reply: null if that is unknown."""
    conversation = await _conversation(request)
    scored = _number(request, "scored", 0) == 1

    def work(agent: PageAgent) -> bytes:
        listed = agent.session.window_tokens(scored)
        cached, prompt = agent.last_prompt(listed)
        counts = encode({"cached": cached, "prompt": prompt})[1:-1]
        return b'"tokens":[' + b",".join(encode_tokens(listed)) + b"]," + counts

    return _joined(await conversation.compute(work))


async def costs(request: Request) -> Response:
    """What a token costs: bytes that are read, and how fast they can be."""
    conversation = await _conversation(request)

    def work(agent: PageAgent) -> dict[str, Any]:
        session = agent.session
        context = session.count(session.visible_messages()) if session.turns else 0
        model = session.model
        return {"bytes_per_token": model.token_bytes(context), "bandwidth": model.bandwidth()}

    content = await conversation.compute(work)
    return JSONResponse(content | asdict(conversation.models.machine(conversation.agent.session.model)))


ACTIONS = {"line": line, "stop": stop, "delete": delete, "restore": restore}
VIEWS = {"export": export, "tokens": tokens, "window": window, "costs": costs}


def _library(request: Request) -> Library:
    return request.app.state.site.library


async def _conversation(request: Request) -> Conversation:
    return await _library(request).find(request.path_params["id"])


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Raises `ApiError` 400 for anything else, also for halves of UTF-16 pairs."""
    raw = await request.body()

    def parse() -> Any:
        body = json.loads(raw.decode())  # of bytes it would take halves of pairs, and other encodings
        if b"\\u" in raw:  # the only other way to write half of a pair
            json.dumps(body, ensure_ascii=False).encode()
        return body

    try:
        body = parse() if len(raw) < LARGE_BODY else await in_thread(parse, "body")
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON in UTF-8: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the body is not a JSON object")
    return body


def _text(body: Mapping[str, Any], name: str) -> str:
    """A member that is a text. Raises `ApiError` 400 without it, or for another value."""
    value = body.get(name)
    if not isinstance(value, str):
        raise ApiError(400, f"{name} is {quote(value)}: use a text")
    return value


def _text_or_none(body: Mapping[str, Any], name: str) -> str | None:
    """The same for one that may be missing or null."""
    return None if body.get(name) is None else _text(body, name)


def _number(request: Request, name: str, default: int | None = None) -> int | None:
    """A number of the query. Raises `ApiError` 400 for another value."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ApiError(400, f"{name}={quote(text)}: use a whole number")
    return int(text)


def _joined(members: bytes) -> Response:
    return Response(b"{" + members + b"}", media_type="application/json")
