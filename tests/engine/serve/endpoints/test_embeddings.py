"""POST /v1/embeddings: OpenAI's request and answer, of an encoder and of a model that generates text."""

from __future__ import annotations

import asyncio
import base64
import struct
import threading
import time

import httpx2
import pytest
import torch

from engine import LLM
from engine.decoding.params import SamplingParams
from engine.decoding.scheduling.request import QueueFullError
from engine.serve.embedding import EmbeddingQueue, Turn
from engine.serve.endpoints.embeddings import encode
from engine.serve.engine import Engine, EngineOptions
from engine.serve.protocol.requests import EmbeddingRequest
from engine.serve.state import Limits
from tests.engine.encoders import make_encoder
from tests.engine.serve.conftest import RunningServer

PATH = "/v1/embeddings"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("bert") / "tiny").folder


@pytest.fixture(scope="module")
def encoder(folder):
    """A client of a server of a tiny encoder."""
    server = RunningServer({"tiny": str(folder)}, Limits())
    with httpx2.Client(base_url=server.url, timeout=120) as client:
        yield client
    server.close()


def vectors_of(answer):
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [(each["object"], each["index"]) for each in data] == [("embedding", i) for i in range(len(data))]
    return torch.tensor([each["embedding"] for each in data])


def test_texts_and_their_token_ids_have_the_vectors_that_embed_gives(encoder, folder):
    llm = LLM.load(folder, "cpu")
    answer = encoder.post(PATH, json={"model": "tiny", "input": ["a b", "c", "a " * 50], "user": "me"})
    expected = llm.embed(["a b", "c", "a " * 50])
    assert torch.equal(vectors_of(answer), expected)
    assert (vectors_of(encoder.post(PATH, json={"input": ["a b"] * 70})) - expected[0]).abs().max() < 1e-6
    assert answer.json()["model"] == "tiny"
    assert answer.json()["usage"] == {"prompt_tokens": 31, "total_tokens": 31, "truncated_inputs": 1}
    assert torch.equal(vectors_of(encoder.post(PATH, json={"input": "c"}))[0], llm.embed(["c"])[0])
    ids = llm.embedder.encode(["a b", "c"]).rows
    assert (vectors_of(encoder.post(PATH, json={"input": ids})) - expected[:2]).abs().max() < 1e-6
    assert (vectors_of(encoder.post(PATH, json={"input": ids[0], "dimensions": 48})) - expected[0]).abs().max() < 1e-6


def test_base64_has_the_same_numbers_in_float32(encoder):
    number = vectors_of(encoder.post(PATH, json={"input": "a b c"}))[0]
    answer = encoder.post(PATH, json={"input": "a b c", "encoding_format": "base64"})
    raw = base64.b64decode(answer.json()["data"][0]["embedding"])
    assert torch.equal(torch.tensor(struct.unpack("<48f", raw)), number)


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        (PATH, {"input": "a", "dimensions": 8}, "dimensions", "dimensions is 8; vectors of tiny have 48"),
        (PATH, {"input": [[2] * 25]}, "input", "an input has 25 tokens, and tiny takes 24"),
        (PATH, {"input": [64]}, "input", "input has 64; the model's tokens are 0 to 63"),
        (PATH, {"input": []}, "input", "input"),
        (PATH, {"input": "a", "encoding_format": "int8"}, "encoding_format", "encoding_format"),
        ("/v1/completions", {"prompt": "a"}, "model", "tiny is an encoder: it embeds texts, at /v1/embeddings"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, "model", "tiny is an encoder"),
    ],
)
def test_what_cannot_be_answered_is_a_400_in_openais_shape(encoder, path, body, param, message):
    answer = encoder.post(path, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"].startswith(message) or message in error["message"]


def test_an_encoders_other_endpoints_answer(encoder):
    assert encoder.get("/health").status_code == 200
    assert encoder.get("/props").json()["total_slots"] == 1
    assert encoder.get("/v1/models/tiny").json()["max_model_len"] == 24
    assert encoder.post("/tokenize", json={"prompt": "a"}).json()["tokens"] == [2, 5, 3]
    assert 'bareloop:prompt_tokens_total{model_name="tiny"}' in encoder.get("/metrics").text


def test_a_model_that_generates_text_embeds_too(client, llm):
    texts = ["My name is Ann.", "The sea is blue. " * 40]
    assert (vectors_of(client.post(PATH, json={"input": texts})) - llm.embed(texts)).abs().max() < 1e-4


def test_a_reply_goes_on_while_texts_are_embedded(running, client):
    request = running.scheduler.submit([5], SamplingParams(max_new_tokens=150, ignore_eos=True))
    vectors_of(client.post(PATH, json={"input": ["The sea is blue. " * 60] * 3}))
    assert len(list(request)) == 150


def test_a_thread_that_releases_its_turn_gets_no_other_before_one_that_waits():
    turn, holds, taken = Turn(), threading.Event(), []

    def take():
        with turn:
            holds.set()
            while not turn._next.locked():  # until the other one waits
                time.sleep(0.001)
        with turn:
            taken.append(1)

    thread = threading.Thread(target=take)
    thread.start()
    holds.wait()
    with turn:
        assert not taken
    thread.join()


def test_the_wait_for_the_first_step_is_not_counted_as_computing(folder):
    async def attempt():
        llm, turn = LLM.load(folder, "cpu"), Turn()
        steps = llm.embedder.steps

        def slow(*arguments):
            time.sleep(0.03)
            yield from steps(*arguments)

        llm.embedder.steps = slow
        turn.__enter__()
        asyncio.get_running_loop().call_later(0.05, turn.__exit__)
        return await EmbeddingQueue(llm, turn, None, 0, lambda _: None).compute([[2, 5, 3]])

    computed = asyncio.run(attempt())
    assert computed.queue_seconds >= 0.04
    assert computed.seconds >= 0.03


def test_texts_of_a_decoder_in_pieces_are_open_one_at_a_time_and_closed_if_the_client_leaves(llm, monkeypatch):
    opened, closed, turns, has_left = [], [], [], threading.Event()
    new_sequence, leaving, loop = llm.embedder._new_sequence, None, None

    def observed(state):
        opened.append(len(opened) - len(closed))
        sequence = new_sequence(state)
        close = sequence.close
        sequence.close = lambda: (closed.append(1), close())
        return sequence

    class Counted(Turn):
        def __enter__(self):
            turns.append(1)
            super().__enter__()
            if len(turns) == 20:  # in the second step of the long text its client leaves
                leave()
                has_left.wait()

    monkeypatch.setattr(llm.embedder, "_new_sequence", observed)

    def leave():
        loop.call_soon_threadsafe(leaving.cancel)

    async def attempt():
        nonlocal leaving, loop
        loop = asyncio.get_running_loop()
        queue = EmbeddingQueue(llm, Counted(), 4, 9, lambda _: None)
        await asyncio.gather(*(queue.compute([[5] * 10, [6] * 10]) for _ in range(3)))
        leaving = asyncio.ensure_future(queue.compute([[5] * 500]))
        leaving.add_done_callback(lambda _: has_left.set())
        await asyncio.sleep(0)  # it is in the queue
        await queue.compute([[5]])

    asyncio.run(attempt())
    assert opened == [0] * 8
    assert len(closed) == 8
    assert len(turns) == 3 * 6 + 2 + 1


def test_texts_are_cut_to_the_window_of_the_server(llm):
    engine = Engine("demo", llm, EngineOptions(context=16))
    engine.scheduler.close()
    assert (engine.embedder.max_length, llm.embedder.max_length) == (16, llm.max_length)
    assert encode(EmbeddingRequest(input="The sea is blue. " * 40), engine).truncated == 1


def test_an_encoder_is_served_beside_a_model_with_a_draft(folder):
    engine = Engine.load("tiny", str(folder), EngineOptions({"draft": "prompt"}), lambda *_: None, lambda _: None)
    assert engine.llm.draft is None
    assert len(engine.embedder.vectors([[2, 5, 3]])) == 1


def test_a_full_queue_is_refused(folder):
    async def attempt():
        queue = EmbeddingQueue(LLM.load(folder, "cpu"), Turn(), None, 0, lambda _: None)
        both = (queue.compute([[2, 5, 3]]), queue.compute([[2]]))
        first, second = await asyncio.gather(*both, return_exceptions=True)
        assert isinstance(second, QueueFullError)
        assert first.vectors.shape == (1, 48)
        assert queue.requests == 0

    asyncio.run(attempt())
