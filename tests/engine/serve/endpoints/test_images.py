"""Images in requests to a server of a tiny vision-language model."""

from __future__ import annotations

import base64
import io
import threading

import httpx2
import pytest

from engine import LLM, SamplingParams
from engine.runtime.pictures import data_url
from engine.serve.conversation import images
from engine.serve.protocol.common import MAX_TEXT
from engine.serve.state import Limits
from tests.engine.models.vision.tiny import picture, tiny_checkpoint
from tests.engine.serve.conftest import RunningServer

WIDE, TALL = picture(90, 40, seed=1), picture(30, 70, seed=2)
QUESTION = {"type": "text", "text": "What is in this picture?"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("vision") / "tiny").folder


@pytest.fixture(scope="module")
def seeing(folder):
    server = RunningServer({"tiny": str(folder), "demo": "demo"}, Limits(default_new_tokens=8))
    yield server
    server.close()


@pytest.fixture(scope="module")
def tiny(folder):
    """The same model in this process."""
    return LLM.load(folder)


@pytest.fixture
def client(seeing):
    with httpx2.Client(base_url=seeing.url, timeout=120) as client:
        yield client


def part(content):
    return {"type": "image_url", "image_url": {"url": data_url(content)}}


def user(*parts):
    return {"role": "user", "content": [*parts]}


def post(client, path, status=200, **body):
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def chat(client, *messages, status=200, **body):
    body = {"temperature": 0, "max_tokens": 8, "ignore_eos": True, "messages": [*messages]} | body
    return post(client, "/v1/chat/completions", status, **body)


def local(*messages):
    """The same messages for `LLM.chat`."""
    source = {data_url(content): content for content in (WIDE, TALL)}

    def read(part):
        return part if part["type"] == "text" else {"type": "image", "image": source[part["image_url"]["url"]]}

    return [
        message if isinstance(message["content"], str) else message | {"content": [*map(read, message["content"])]}
        for message in messages
    ]


@pytest.mark.parametrize("contents", [[WIDE], [WIDE, TALL]])
def test_the_reply_equals_the_engines(client, tiny, contents):
    message = user(*map(part, contents), QUESTION)
    expected = tiny.chat(local(message), SamplingParams(max_new_tokens=8, ignore_eos=True))
    answer = chat(client, message)
    assert answer["choices"][0]["message"]["content"] == expected.text
    assert answer["usage"]["prompt_tokens"] == len(tiny.chat_template.encode(local(message))) > 50 * len(contents)


def test_the_reply_depends_on_the_image_and_on_the_order(client):
    orders = ([WIDE], [TALL], [WIDE, TALL], [TALL, WIDE])
    answers = [chat(client, user(*map(part, order), QUESTION), logprobs=True) for order in orders]
    logprobs = {str(answer["choices"][0]["logprobs"]["content"]) for answer in answers}
    assert len(logprobs) == 4


def test_going_on_about_an_image_costs_only_the_new_tokens(client):
    message = user(part(WIDE), QUESTION)
    first = chat(client, message, cache_salt="going on")
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    reply = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
    more = chat(client, message, reply, {"role": "user", "content": "How many?"}, cache_salt="going on")
    assert more["usage"]["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"] - 1


def test_requests_of_another_salt_share_no_images(client, seeing):
    library = seeing.engines.loaded[-1].llm.images
    kinds = []
    for salt in ("one", "other", "one"):
        usage = chat(client, user(part(TALL), QUESTION), cache_salt=salt)["usage"]
        kinds.append(usage["prompt_tokens_details"]["cached_tokens"] > 0)
    assert kinds == [False, False, True]
    ids = {str(library.encode(TALL, (None, salt))) for salt in ("one", "other")}
    assert len(ids) == 2


def test_ids_for_clients_have_the_image_token(client, tiny):
    message = user(part(WIDE), QUESTION)
    expected = tiny.images.placeholders(tiny.chat_template.encode(local(message)))
    assert tiny.config.image_token_id in expected and max(expected) < tiny.config.vocab_size
    answer = chat(client, message, return_token_ids=True, prompt_logprobs=1)
    assert answer["prompt_token_ids"] == expected
    scored = [entry is not None for entry in answer["prompt_logprobs"]]
    assert scored == [False] + [token != tiny.config.image_token_id for token in expected[1:]]
    counted = post(client, "/tokenize", messages=[message])
    assert (counted["tokens"], counted["count"]) == (expected, len(expected))
    assert post(client, "/v1/chat/completions/input_tokens", messages=[message]) == {"input_tokens": len(expected)}


def test_a_stream_has_the_same_reply(client):
    message = user(part(WIDE), QUESTION)
    body = {"messages": [message], "temperature": 0, "max_tokens": 8, "ignore_eos": True, "return_token_ids": True}
    whole = chat(client, message, return_token_ids=True)
    text = client.post("/v1/chat/completions", json=body | {"stream": True}).text
    assert str(whole["prompt_token_ids"]).replace(" ", "") in text and "[DONE]" in text


def test_tools_and_images_go_together(client):
    tool = {"type": "function", "function": {"name": "look"}}
    answer = chat(client, user(part(WIDE), QUESTION), tools=[tool])
    assert answer["usage"]["prompt_tokens"] > chat(client, user(part(WIDE), QUESTION))["usage"]["prompt_tokens"]


def test_a_written_image_token_is_text(client):
    usage = chat(client, {"role": "user", "content": "<image> <image>"})["usage"]
    assert usage["prompt_tokens"] < 60


def bomb():
    """A file of a few kilobytes with more pixels than the limit."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("1", (9000, 9000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", "is not a PNG, JPEG, WebP, GIF or BMP file"),
        (WIDE[:200], "is damaged or incomplete"),
        (bomb(), "9,000 x 9,000 pixels; the limits are"),
    ],
)
def test_a_file_that_cannot_be_decoded_is_refused_with_its_place(client, content, message):
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    error = chat(client, user(part(WIDE), {"type": "image_url", "image_url": {"url": url}}), status=400)["error"]
    assert error["param"] == "messages[0].content[1].image_url.url"
    assert error["message"].startswith(error["param"]) and message in error["message"]


def test_a_model_for_text_says_so(client):
    error = chat(client, user(QUESTION, part(WIDE)), model="demo", status=400)["error"]
    assert error["param"] == "messages[0].content[1].image_url.url"
    assert "demo takes no images; use a vision-language model" in error["message"]


def test_more_images_than_the_window_holds_are_refused_before_they_are_decoded(client, monkeypatch):
    decoded = []
    encode = images.RequestImages.encode
    monkeypatch.setattr(images.RequestImages, "encode", lambda self, source: decoded.append(1) or encode(self, source))
    error = chat(client, user(*[part(WIDE)] * 400), status=400)["error"]
    assert error["code"] == "context_length_exceeded" and error["n_ctx"] == 2048
    assert len(decoded) < 50


def test_images_may_be_larger_than_a_text(client):
    large = f"data:image/png;base64,{base64.b64encode(WIDE + bytes(MAX_TEXT)).decode()}"
    assert chat(client, user({"type": "image_url", "image_url": {"url": large}}))["usage"]["prompt_tokens"] > 50
    for body in ({"messages": [{"role": "user", "content": large}]}, {"messages": [user(QUESTION)], "user": large}):
        status = 400 if "user" not in body else 200
        assert client.post("/v1/chat/completions", json=body | {"max_tokens": 1}).status_code == status
    assert client.post("/v1/completions", json={"prompt": large}).status_code == 413


@pytest.mark.parametrize(
    ("path", "name"), [("/v1/completions", "prompt"), ("/v1/embeddings", "input"), ("/detokenize", "tokens")]
)
def test_ids_beyond_the_vocabulary_are_refused(client, tiny, path, name):
    for token in (tiny.config.vocab_size, 2**31 - 1):
        error = post(client, path, 400, **{name: [5, token]})["error"]
        assert error["param"] == name and f"{name} has {token}; the model's tokens are 0 to" in error["message"]
    beyond = tiny.images.encode(WIDE, (None, None))
    assert post(client, path, 400, **{name: beyond})["error"]["param"].startswith(name)


def test_other_requests_are_answered_while_an_image_is_decoded(client, seeing, monkeypatch):
    begun, may_end = threading.Event(), threading.Event()
    encode = images.RequestImages.encode

    def slow(self, source):
        begun.set()
        assert may_end.wait(60)
        return encode(self, source)

    monkeypatch.setattr(images.RequestImages, "encode", slow)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(chat(client, user(part(WIDE), QUESTION))))
    thread.start()
    assert begun.wait(60)
    with httpx2.Client(base_url=seeing.url, timeout=120) as other:
        assert chat(other, {"role": "user", "content": "Hi"})["usage"]["completion_tokens"] == 8
    may_end.set()
    thread.join(60)
    assert answers[0]["usage"]["completion_tokens"] == 8


def test_the_server_tells_which_models_take_images(client):
    assert client.get("/props?model=tiny").json()["modalities"] == {"vision": True, "audio": False}
    assert client.get("/props?model=demo").json()["modalities"] == {"vision": False, "audio": False}
