"""What the server tells of its models, and tokens of texts, by the names that clients use."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("path", ["/v1/models/demo", "/v1/models/%64emo"])
def test_a_model_is_found_by_its_id_in_any_encoding(client, path):
    assert client.get(path).json()["id"] == "demo"


@pytest.mark.parametrize("name", ["Qwen%2FQwen2.5", "Qwen/Qwen2.5", "demo/", "..%2f..%2fetc", "%00", "%ff", ""])
def test_an_id_that_is_not_served_is_404(client, name):
    answer = client.get(f"/v1/models/{name}")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")


def test_tools_are_checked_with_a_text_too(client):
    answer = client.post("/tokenize", json={"content": "", "tools": [{"type": "function"}]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools[0]")


def test_every_token_has_a_piece(client, llm):
    text = "unicode 媽 and emoji 🤗"
    tokens = client.post("/tokenize", json={"content": text, "with_pieces": True}).json()["tokens"]
    pieces = [each["piece"] for each in tokens]
    assert all(pieces) and [each["id"] for each in tokens] == llm.tokenizer.encode(text, False)
    assert b"".join(bytes(each) if isinstance(each, list) else each.encode() for each in pieces).decode() == text
