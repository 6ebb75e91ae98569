"""The answer to one client, by the ASGI protocol itself: errors of the work, time-outs, large answers."""

from __future__ import annotations

import asyncio
import json
import threading
from types import SimpleNamespace

import pytest

from engine.serve.endpoints import client as module
from engine.serve.endpoints.client import Job, check_size, encode, encode_large, prepare
from engine.serve.protocol.common import MAX_TEXT
from engine.serve.protocol.errors import ApiError
from engine.serve.protocol.requests import ChatRequest, CompletionRequest, EmbeddingRequest, TokenizeRequest
from engine.serve.state import Limits, ServerState

SCOPE = {"type": "http", "method": "POST", "path": "/v1/completions"}


def run(work, timeout=60.0, reads=10**9) -> list[bytes]:
    """Do the work for a client that takes so many messages, and then no more. -> the bodies that it took"""
    bodies = []

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        if len(bodies) == reads:
            await asyncio.Event().wait()
        bodies.append(message.get("body", b""))

    asyncio.run(asyncio.wait_for(Job(work, Limits(timeout=timeout))(SCOPE, receive, send), 60))
    return bodies


@pytest.mark.parametrize("error", [OSError("too many open files"), TimeoutError("a worker's"), KeyError("x")])
@pytest.mark.parametrize("is_streaming", [False, True])
def test_an_error_of_the_work_is_told_once_whatever_its_type(error, is_streaming, caplog):
    async def work(client):
        if is_streaming:
            await client.start()
        raise error

    if is_streaming:
        _, event, end = run(work)
        assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "internal_error" and not end
    else:
        _, body = run(work)
        assert json.loads(body)["error"]["code"] == "internal_error"
    assert "POST '/v1/completions'" in caplog.text and len(caplog.records) == 1


def test_a_stream_that_nobody_reads_ends_after_its_time(monkeypatch):
    monkeypatch.setattr(module, "FAIL_SECONDS", 0.0)

    async def work(client):
        await client.start()
        while True:
            await client.event({"text": "x"})

    assert len(run(work, timeout=0.01, reads=2)) == 2


@pytest.mark.parametrize(
    "content",
    [{}, [], {"a": {}, "b": [], "é": None}, {"choices": [{"index": 0, "logprobs": {"top": [{"x": -1.5}] * 200}}]}],
)
def test_a_large_answer_is_the_same_json_in_parts(content):
    assert asyncio.run(encode_large(content)) == encode(content)


def test_a_value_that_has_been_encoded_is_a_part_of_the_answer():
    content = {"data": [{"index": 0}], "model": "é"}
    assert asyncio.run(encode_large({"data": b'[{"index":0}]', "model": "é"})) == encode(content)


def test_others_are_served_while_a_large_answer_is_encoded():
    async def turns() -> int:
        encoding = asyncio.ensure_future(encode_large({"a": [{"text": "x" * 100, "values": [1.5] * 20}] * 2000}))
        count = 0
        while not encoding.done():
            await asyncio.sleep(0)
            count += 1
        return count

    assert asyncio.run(turns()) > 2000 / module.SLICE


def test_large_bodies_are_prepared_two_at_a_time_also_if_their_clients_leave():
    may_end, begun = threading.Event(), []

    def request(size):
        async def body():
            return b"x" * size

        return SimpleNamespace(body=body, app=app)

    def work():
        begun.append(1)
        assert may_end.wait(60)

    async def prepare_many():
        large = [asyncio.ensure_future(prepare(request(module.LARGE_BODY), work)) for _ in range(3)]
        assert await prepare(request(5), lambda: "small") == "small"
        for task in large[:2]:
            task.cancel()
        await asyncio.gather(*large[:2], return_exceptions=True)
        assert await prepare(request(5), lambda: len(begun)) == 2
        may_end.set()
        await large[2]

    app = SimpleNamespace(state=SimpleNamespace(server=ServerState(None, None, None)))
    asyncio.run(prepare_many())
    assert len(begun) == 3


@pytest.mark.parametrize(
    ("kind", "text", "image", "limit"),
    [
        (ChatRequest, 0, MAX_TEXT, None),
        (TokenizeRequest, 0, MAX_TEXT, None),
        (ChatRequest, MAX_TEXT, MAX_TEXT, "bytes without its images: use up to 2,000,000"),
        (CompletionRequest, 0, MAX_TEXT, "bytes: use up to 2,000,000"),
        (EmbeddingRequest, MAX_TEXT, 0, "bytes: use up to 2,000,000"),
    ],
)
def test_only_the_images_of_messages_may_be_larger_than_a_text(kind, text, image, limit):
    body = json.dumps({"text": "x" * text, "image": f"data:image/png;base64,{'A' * image}"}).encode()
    if limit is None:
        check_size(kind, body)
        return
    with pytest.raises(ApiError, match=limit) as caught:
        check_size(kind, body)
    assert caught.value.status == 413


def test_small_bodies_with_images_wait_for_each_other():
    may_end, begun = threading.Event(), []

    async def body():
        return b"x"

    def work():
        begun.append(1)
        assert may_end.wait(60)

    async def prepare_many():
        with_images = [asyncio.ensure_future(prepare(request, work, has_images=True)) for _ in range(3)]
        assert await prepare(request, lambda: "text") == "text"
        while len(begun) < 2:
            await asyncio.sleep(0)
        assert await prepare(request, lambda: len(begun)) == 2
        may_end.set()
        await asyncio.gather(*with_images)

    state = ServerState(None, None, None)
    request = SimpleNamespace(body=body, app=SimpleNamespace(state=SimpleNamespace(server=state)))
    asyncio.run(prepare_many())
    assert len(begun) == 3
