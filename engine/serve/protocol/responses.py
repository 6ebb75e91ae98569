"""JSON schemas of the answers, for /openapi.json. Answers may have further members."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.serve.protocol.rules.scalars import NULL, Schema

NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
STRING_OR_NULL: Schema = {"type": ["string", "null"]}


def constant(*values: str | None) -> Schema:
    """One of these values."""
    return {"enum": [*values]}


def listed(items: Schema, least: int = 0) -> Schema:
    """A list of items."""
    return {"type": "array", "items": items} | ({"minItems": least} if least else {})


def record(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object with these members, and maybe others."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": [*required]}


def either(*schemas: Schema) -> Schema:
    """A value of one of several kinds."""
    return {"anyOf": [*schemas]}


def or_null(schema: Schema) -> Schema:
    """The same, or null."""
    return either(schema, NULL)


def ref(name: str) -> Schema:
    """A schema of `SCHEMAS`, or of a request."""
    return {"$ref": f"#/components/schemas/{name}"}


HEAD = {"id": STRING, "created": COUNT, "model": STRING, "system_fingerprint": STRING}
IDS = listed(COUNT)
FINISH = constant("stop", "length", "tool_calls")
CALL = record(
    {"type": constant("function"), "id": STRING, "function": record({"name": STRING, "arguments": STRING})},
    {"index": COUNT},
)
CALL_DELTA = record(
    {"index": COUNT},
    {"type": constant("function"), "id": STRING, "function": record({}, {"name": STRING, "arguments": STRING})},
)
TOKEN = {"token": STRING, "logprob": NUMBER, "bytes": listed(COUNT)}
CHAT_LOGPROBS = record(
    {"content": listed(record({**TOKEN, "top_logprobs": listed(record(TOKEN))})), "refusal": NULL},
)
LOGPROBS = record(
    {
        "tokens": listed(STRING),
        "token_logprobs": listed({"type": ["number", "null"]}),
        "top_logprobs": listed(or_null({"type": "object", "additionalProperties": NUMBER})),
        "text_offset": IDS,
    }
)
MESSAGE = record(
    {"role": constant("assistant"), "content": STRING_OR_NULL},
    {"reasoning_content": STRING_OR_NULL, "tool_calls": listed(CALL), "refusal": NULL},
)
DELTA = record(
    {},
    {
        "role": constant("assistant"),
        "content": STRING_OR_NULL,
        "reasoning_content": STRING,
        "tool_calls": listed(CALL_DELTA),
    },
)
CHOICE = record(
    {"index": COUNT, "message": MESSAGE, "logprobs": or_null(CHAT_LOGPROBS), "finish_reason": FINISH},
    {"token_ids": IDS},
)
CHUNK_CHOICE = record(
    {"index": COUNT, "delta": DELTA, "finish_reason": or_null(FINISH)},
    {"logprobs": or_null(CHAT_LOGPROBS), "token_ids": IDS},
)
TEXT_CHOICE = record(
    {"index": COUNT, "text": STRING, "logprobs": or_null(LOGPROBS), "finish_reason": or_null(FINISH)},
    {"token_ids": IDS, "prompt_token_ids": IDS},
)
VECTOR = either(listed(NUMBER), STRING)
PIECE = record({"id": COUNT, "piece": either(STRING, IDS)})

SCHEMAS: Mapping[str, Schema] = {
    "Error": record(
        {
            "error": record(
                {
                    "message": STRING,
                    "type": STRING,
                    "param": STRING_OR_NULL,
                    "code": {"type": ["string", "integer", "null"]},
                }
            )
        }
    ),
    "Usage": record(
        {"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT},
        {
            "prompt_tokens_details": record({"cached_tokens": COUNT}),
            "completion_tokens_details": record({"reasoning_tokens": COUNT}),
        },
    ),
    "ChatCompletion": record(
        {**HEAD, "object": constant("chat.completion"), "choices": listed(CHOICE, 1), "usage": ref("Usage")},
        {"prompt_token_ids": IDS, "prompt_logprobs": {}, "timings": {"type": "object"}},
    ),
    "ChatCompletionChunk": record(
        {**HEAD, "object": constant("chat.completion.chunk"), "choices": listed(CHUNK_CHOICE)},
        {"usage": or_null(ref("Usage")), "timings": {"type": "object"}},
    ),
    "Completion": record(
        {**HEAD, "object": constant("text_completion"), "choices": listed(TEXT_CHOICE)},
        {"usage": or_null(ref("Usage")), "timings": {"type": "object"}},
    ),
    "Model": record(
        {"id": STRING, "object": constant("model"), "created": COUNT, "owned_by": STRING}, {"max_model_len": COUNT}
    ),
    "Models": record({"object": constant("list"), "data": listed(ref("Model"), 1)}),
    "Embeddings": record(
        {
            "object": constant("list"),
            "data": listed(record({"object": constant("embedding"), "index": COUNT, "embedding": VECTOR})),
            "model": STRING,
            "usage": record({"prompt_tokens": COUNT, "total_tokens": COUNT, "truncated_inputs": COUNT}),
        }
    ),
    "TokenCount": record({"input_tokens": COUNT}),
    "Tokens": record({"tokens": listed(either(COUNT, PIECE))}, {"count": COUNT, "max_model_len": COUNT}),
    "Text": record({"prompt": STRING, "content": STRING}),
    "TokenizerInfo": record(
        dict.fromkeys(("bos_token", "eos_token", "pad_token", "chat_template"), STRING_OR_NULL),
    ),
    "Properties": record(
        {
            "default_generation_settings": record({"n_ctx": COUNT}, {"params": {"type": "object"}}),
            "total_slots": COUNT,
            "model_path": STRING,
            "chat_template": STRING,
            "bos_token": STRING,
            "eos_token": STRING,
            "modalities": record({"vision": BOOLEAN, "audio": BOOLEAN}),
        }
    ),
    "Health": record({"status": constant("ok")}),
    "Description": record({"openapi": STRING, "info": {"type": "object"}, "paths": {"type": "object"}}),
}


def answer_headers(*names: str) -> dict[str, Any]:
    """Headers of a response."""
    return {name: {"schema": STRING} for name in ("x-request-id", *names)}
