"""The API in OpenAPI's format, version 3.1: all paths, with requests described by the rules that read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from engine.serve.protocol.fields import Fields, schema_of
from engine.serve.protocol.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from engine.serve.protocol.responses import (
    SCHEMAS,
    STRING,
    STRING_OR_NULL,
    answer_headers,
    constant,
    either,
    listed,
    record,
    ref,
)
from engine.serve.protocol.rules.scalars import NULL, Schema

REQUESTS = (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest, EmbeddingRequest)
KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
STATUSES = {
    400: "The request is not valid, or this model cannot answer it.",
    401: "The API key is missing or wrong.",
    403: "The Host or Origin header is not allowed.",
    404: "There is no such model.",
    408: "The request did not arrive, or was not answered, in time.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    429: "Too many requests are waiting.",
    500: "A fault of the server.",
    503: "The server is loading or ending, it is busy, or its memory has run out.",
}
HEADERS = {401: ["www-authenticate"], 429: ["retry-after"], 503: ["retry-after"]}
OF_ALL, OF_BODIES, OF_MODELS = (400, 403, 500, 503), (404, 408, 413, 415, 429), (404, 408)
# The HTTP library itself answers what it cannot parse, and too many connections, in plain text.
IN_PLAIN_TEXT = (400, 503)

# Messages and tools, which the fields' rules leave to the code that prepares them for chat templates. What only some
# roles have is checked only there.
NAME: Schema = {"type": ["string", "null"], "minLength": 1, "maxLength": 256}
TEXT_PART = record({"type": constant("text"), "text": STRING})
IMAGE_URL: Schema = {
    "type": "string",
    "pattern": "^[dD][aA][tT][aA]:[iI][mM][aA][gG][eE]/",
    "description": "A data: URL with the base64 of a PNG, JPEG, WebP, GIF or BMP file. Others are not fetched.",
}
DETAIL = {"enum": ["auto", "high", None], "description": "Without effect: images are split as the checkpoint says."}
IMAGE_PART = record({"type": constant("image_url"), "image_url": record({"url": IMAGE_URL}, {"detail": DETAIL})})
PART = either(TEXT_PART, record({"type": constant("refusal"), "refusal": STRING}))
ARGUMENTS = either({"type": ["object", "null"]}, {"type": "string", "contentMediaType": "application/json"})
CALL = record(
    {"function": record({"name": {"type": "string", "minLength": 1, "maxLength": 256}}, {"arguments": ARGUMENTS})},
    {"id": NAME, "type": constant("function")},
)
ROLE: Schema = {"type": "string", "minLength": 1, "maxLength": 64}
CALL_ID: Schema = {"description": "Of a tool's message: the call that it answers."}
ASSISTANT = {"role": constant("assistant"), "content": either(STRING, listed(PART, 1), NULL), "name": NAME}
MESSAGE = either(
    record({"role": ROLE, "content": either(STRING, listed(TEXT_PART, 1))}, {"name": NAME, "tool_call_id": CALL_ID}),
    record({"role": constant("user"), "content": listed(either(TEXT_PART, IMAGE_PART), 1)}, {"name": NAME}),
    *(
        record({"role": ASSISTANT["role"], name: schema}, ASSISTANT | {name: schema})
        for name, schema in (
            ("content", listed(PART, 1)),
            ("tool_calls", listed(CALL, 1)),
            ("reasoning_content", STRING),
            ("reasoning", STRING),
            ("refusal", STRING),
        )
    ),
)
PARAMETERS = {"type": ["object", "null"], "description": "JSON schema of an object."}
FUNCTION = record(
    {"name": {"type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,64}$"}},
    {"description": STRING_OR_NULL, "parameters": PARAMETERS, "strict": {"type": ["boolean", "null"]}},
)
TOOL = record({"type": constant("function"), "function": FUNCTION})
DETAILS = {"messages": MESSAGE, "tools": TOOL}


@dataclass(frozen=True)
class Operation:
    """A path with its one method: POST if there is a request, else GET. `answer`: a schema, None for text."""

    path: str
    summary: str
    answer: str | None
    request: type[Fields] | None = None
    events: str | None = None  # the schema of the events of a stream
    of_model: str | None = None  # the parameter that names a model: in the path, or a query

    def describe(self, needs_key: bool) -> dict[str, Any]:
        """The operation's object in the document."""
        statuses = [*OF_ALL, *(OF_BODIES if self.request else OF_MODELS if self.of_model else ()), *([401] * needs_key)]
        kind = "application/json" if self.answer else "text/plain"
        content: dict[str, Any] = {kind: {"schema": ref(self.answer) if self.answer else STRING}}
        if self.events:
            description = f"With stream. The data of an event is a {self.events}, in the last event [DONE]."
            content["text/event-stream"] = {"schema": record({"data": STRING}) | {"description": description}}
        success = {"description": "The answer.", "headers": answer_headers(), "content": content}
        result: dict[str, Any] = {
            "summary": self.summary,
            "responses": {"200": success} | {str(status): _error(status) for status in sorted(statuses)},
        }
        if self.request is not None:
            body = {"application/json": {"schema": ref(self.request.__name__)}}
            result["requestBody"] = {"required": True, "content": body}
        if self.of_model is not None:
            in_path = f"{{{self.of_model}}}" in self.path
            place = {"in": "path", "required": True} if in_path else {"in": "query"}
            result["parameters"] = [{"name": self.of_model, "schema": STRING, "description": "A model."} | place]
        if needs_key:
            result["security"] = [{name: []} for name in KEYS]
        return {"post" if self.request else "get": result}


CHAT = ("Answer a conversation.", "ChatCompletion", ChatRequest, "ChatCompletionChunk")
COUNT = ("Number of tokens of a conversation.", "TokenCount", ChatRequest)
OPERATIONS = (
    Operation("/v1/chat/completions", *CHAT),
    Operation("/chat/completions", *CHAT),
    Operation("/v1/chat/completions/input_tokens", *COUNT),
    Operation("/chat/completions/input_tokens", *COUNT),
    Operation("/v1/completions", "Continue texts.", "Completion", CompletionRequest, "Completion"),
    Operation(
        "/v1/embeddings",
        "Embed texts.",
        "Embeddings",
        EmbeddingRequest,
    ),
    Operation("/tokenize", "Token ids of a text or a conversation.", "Tokens", TokenizeRequest),
    Operation("/detokenize", "The text of token ids.", "Text", DetokenizeRequest),
    Operation("/v1/models", "All models.", "Models"),
    Operation("/models", "All models.", "Models"),
    Operation("/v1/models/{id}", "One model. Its id may have slashes.", "Model", of_model="id"),
    Operation("/tokenizer_info", "Special tokens and chat template.", "TokenizerInfo", of_model="model"),
    Operation("/props", "Settings, as llama.cpp's server tells them.", "Properties", of_model="model"),
    Operation("/metrics", "Counters and histograms for Prometheus.", None),
    Operation("/openapi.json", "This document.", "Description"),
    Operation("/health", "200 while requests can be answered. Needs no key.", "Health"),
)


def document(version: str, needs_key: bool = False) -> dict[str, Any]:
    """The description of the server. `needs_key`: it was started with API keys."""
    paths = {each.path: each.describe(needs_key and each.path != "/health") for each in OPERATIONS}
    schemas = {kind.__name__: request_schema(kind) for kind in REQUESTS}
    return {
        "openapi": "3.1.0",
        "info": {"title": "bareloop", "version": version},
        "paths": paths,
        "components": {"schemas": schemas | dict(SCHEMAS)} | ({"securitySchemes": KEYS} if needs_key else {}),
    }


def request_schema(kind: type[Fields]) -> Schema:
    """The schema of a request, with what messages and tools are."""
    schema = schema_of(kind)
    for name in DETAILS.keys() & schema["properties"].keys():
        schema["properties"][name]["items"] = DETAILS[name]
    return schema


def _error(status: int) -> dict[str, Any]:
    kinds: Iterable[str] = ["application/json", *(["text/plain"] * (status in IN_PLAIN_TEXT))]
    content = {kind: {"schema": ref("Error") if kind == "application/json" else STRING} for kind in kinds}
    headers = answer_headers(*HEADERS.get(status, ()))
    return {"description": STATUSES[status], "headers": headers, "content": content}
