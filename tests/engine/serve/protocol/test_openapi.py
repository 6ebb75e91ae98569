"""The document at /openapi.json: complete, self-contained, and true for the requests that are read."""

from __future__ import annotations

import json
import re

import pytest

from engine.serve.protocol.fields import schema_of
from engine.serve.protocol.openapi import document
from engine.serve.protocol.requests import ChatRequest, CompletionRequest

DOCUMENT = document("1.2.3")
WITH_KEYS = document("1.2.3", needs_key=True)


def operations(content):
    return [(path, method, each) for path, methods in content["paths"].items() for method, each in methods.items()]


def test_all_paths_have_one_method():
    methods = {path: method for path, method, _ in operations(DOCUMENT)}
    assert methods == {
        "/v1/chat/completions": "post",
        "/chat/completions": "post",
        "/v1/chat/completions/input_tokens": "post",
        "/chat/completions/input_tokens": "post",
        "/v1/completions": "post",
        "/v1/embeddings": "post",
        "/tokenize": "post",
        "/detokenize": "post",
        "/v1/models": "get",
        "/models": "get",
        "/v1/models/{id}": "get",
        "/tokenizer_info": "get",
        "/props": "get",
        "/health": "get",
        "/metrics": "get",
        "/openapi.json": "get",
    }


def test_all_references_lead_somewhere():
    text = json.dumps(DOCUMENT)
    names = {*re.findall(r'"#/components/schemas/(\w+)"', text)}
    assert text.count('"$ref"') == len(re.findall(r'"#/components/schemas/\w+"', text))
    assert names <= DOCUMENT["components"]["schemas"].keys()


def test_requests_are_described_by_the_rules_that_read_them():
    schema = DOCUMENT["components"]["schemas"]["CompletionRequest"]
    assert schema == schema_of(CompletionRequest)
    details = DOCUMENT["components"]["schemas"]["ChatRequest"]["properties"]
    assert details.keys() == schema_of(ChatRequest)["properties"].keys()
    assert {name for name, each in schema_of(ChatRequest)["properties"].items() if details[name] != each} == {
        "messages",
        "tools",
    }


def test_every_status_that_an_endpoint_can_answer_is_listed():
    for _, method, operation in operations(DOCUMENT):
        statuses = {*map(int, operation["responses"])}
        assert statuses >= {200, 400, 403, 500, 503}
        assert (method == "get") or statuses >= {404, 408, 413, 415, 429}


def test_keys_are_asked_for_where_the_server_asks_for_them():
    assert "securitySchemes" not in DOCUMENT["components"]
    assert not [path for path, _, each in operations(DOCUMENT) if "security" in each or "401" in each["responses"]]
    assert [path for path, _, each in operations(WITH_KEYS) if "security" not in each] == ["/health"]
    assert [path for path, _, each in operations(WITH_KEYS) if "401" not in each["responses"]] == ["/health"]


@pytest.mark.parametrize(
    ("name", "answer", "is_valid"),
    [
        ("Error", {"error": {"message": "m", "type": "t", "param": None, "code": 503}}, True),
        ("Error", {"error": {"message": "m", "type": "t", "param": None}}, False),
        ("Error", {"detail": []}, False),
        ("Health", {"status": "ok"}, True),
        ("Tokens", {"tokens": [1, {"id": 2, "piece": "a"}, {"id": 3, "piece": [195]}]}, True),
        ("Tokens", {"tokens": ["a"]}, False),
        ("TokenizerInfo", {"bos_token": None, "eos_token": "</s>", "pad_token": None, "chat_template": None}, True),
        ("Model", {"id": "a/b", "object": "model", "created": 1, "owned_by": "x"}, True),
        ("Model", {"id": "a/b", "object": "model", "created": 1.5, "owned_by": "x"}, False),
    ],
)
def test_answers_are_described(name, answer, is_valid, validates):
    assert validates(DOCUMENT["components"]["schemas"][name], answer) == is_valid


@pytest.mark.parametrize(
    ("part", "is_valid"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, True),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "auto"}}, True),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}, False),
        ({"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}, False),
        ({"type": "image_url", "image_url": "data:image/png;base64,AAAA"}, False),
        ({"type": "image_url"}, False),
    ],
)
def test_images_are_described_for_the_user(part, is_valid, validates):
    schema = DOCUMENT["components"]["schemas"]["ChatRequest"]
    message = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}
    assert validates(schema, {"messages": [message]}) == is_valid
    for role in ("system", "assistant", "tool"):
        assert not validates(schema, {"messages": [message | {"role": role}]})
