"""The client of OpenAI-compatible servers: tries again where that helps, and says in one line what is wrong."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.remote import client as module
from engine.remote.client import RemoteModel
from engine.remote.errors import RemoteError
from engine.runtime.errors import BareloopError
from tests.engine.remote.fake_server import Answer, error, serving, sse, unused_url

COMPLETION = {"choices": [{"index": 0, "text": " yes", "finish_reason": "stop"}]}
LISTED = {"object": "list", "data": [{"id": "small"}, {"id": "org/large", "max_model_len": 512}]}


@pytest.fixture(autouse=True)
def no_keys_and_no_waiting(monkeypatch):
    monkeypatch.delenv("BARELOOP_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(module, "FIRST_WAIT", 0.0)


def answering(*answers):
    """Answer in this order, with the last one from then on."""
    remaining = list(answers)
    return lambda _: remaining.pop(0) if len(remaining) > 1 else remaining[0]


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/v1/completions", "/v1/chat/completions"])
def test_a_url_may_end_with_v1_or_not(suffix):
    with serving(answering(Answer(COMPLETION))) as server, RemoteModel(server.url + suffix, "small") as model:
        assert model.complete({"prompt": "Is it?"}) == COMPLETION
        model.chat({"messages": []})
        assert [(asked.path, asked.body) for asked in server.asked] == [
            ("/v1/completions", {"model": "small", "prompt": "Is it?"}),
            ("/v1/chat/completions", {"model": "small", "messages": []}),
        ]


def test_what_may_work_again_is_tried_again(monkeypatch):
    faults = [error("slow down", 429, retry_after="0"), error("oops", 500), Answer("{", breaks=True), error("", 408)]
    with serving(answering(*faults, Answer(COMPLETION))) as server, RemoteModel(server.url, "small") as model:
        assert model.complete({}) == COMPLETION
        assert len(server.asked) == 5


def test_the_server_decides_how_long_to_wait(monkeypatch):
    waits = []
    monkeypatch.setattr(module, "FIRST_WAIT", 0.5)
    faults = [error("", 429, retry_after="7"), *(error("", 503),) * 2, error("", 503, retry_after="soon")]
    with serving(answering(*faults, Answer(COMPLETION))) as server, RemoteModel(server.url, "small") as model:
        monkeypatch.setattr(model._closed, "wait", waits.append)
        model.complete({})
        assert waits == [7.0, 1.0, 2.0, 4.0]
        server.answer = answering(error("come tomorrow", 429, retry_after="90000"))
        with pytest.raises(RemoteError, match='answered 429: "come tomorrow"'):
            model.complete({})
        assert len(waits) == 4


def test_what_will_not_work_is_not_tried_again():
    with serving(answering(error("no such field", 400))) as server, RemoteModel(server.url, "small") as model:
        with pytest.raises(RemoteError, match='/v1/completions answered 400: "no such field"') as caught:
            model.complete({})
        assert caught.value.status == 400
        assert len(server.asked) == 1


def test_tries_end():
    with serving(answering(error("oops", 500))) as server, RemoteModel(server.url, "small") as model:
        with pytest.raises(RemoteError, match='answered 500: "oops"'):
            model.complete({})
        assert len(server.asked) == module.TRIES


def test_a_missing_server_is_reported_at_once_with_the_command_that_starts_one():
    url = unused_url()
    with RemoteModel(url, "smollm2") as model, pytest.raises(RemoteError) as caught:
        model.complete({})
    port = url.rpartition(":")[2]
    assert f"no server answers at {url} (" in str(caught.value)
    assert str(caught.value).endswith(f"; start one: python -m engine.serve -m smollm2 --port {port}")


def test_a_server_that_went_away_is_tried_again_and_then_reported():
    with RemoteModel(unused_url(), "small") as model:
        waits = []
        model._reached = True
        model._closed.wait = waits.append
        with pytest.raises(RemoteError, match="no server answers"):
            model.complete({})
        assert len(waits) == module.TRIES - 1


def test_a_slow_answer_ends_with_the_limit():
    go_on = threading.Event()
    with serving(lambda _: Answer(COMPLETION) if go_on.wait(30) else error("", 400)) as server:
        with (
            RemoteModel(server.url, "small", timeout=0.05) as model,
            pytest.raises(RemoteError, match=r"0\.05 s"),
        ):
            model.complete({})
        go_on.set()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("<html>\n\x1b[31mhello", 'not answer as an OpenAI-compatible server does: "<html> [31mhello"'),
        ("[1, 2]", 'does: "[1, 2]"'),
        ({"error": {"message": "in a proxy"}}, 'answered: "in a proxy"'),
    ],
)
def test_an_answer_that_is_none_is_one_clear_line(content, line):
    with serving(answering(Answer(content))) as server, RemoteModel(server.url, "small") as model:
        with pytest.raises(RemoteError) as caught:
            model.complete({})
        assert line in str(caught.value)


def test_messages_of_all_kinds_of_servers_are_found():
    bodies = {
        '"a"': '{"error": "a"}',
        '"b"': '{"detail": [{"msg": "b"}]}',
        '"c d"': "c\n  d",
        '"e"': '{"message": "e"}',
    }
    for message, body in bodies.items():
        with serving(answering(Answer(body, 400))) as server, RemoteModel(server.url, "small") as model:
            with pytest.raises(RemoteError) as caught:
                model.complete({})
            assert message in str(caught.value)


def test_the_key_is_sent_and_never_shown(monkeypatch, tmp_path):
    refusal = answering(error("Incorrect API key provided: sk-secret", 401))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with serving(refusal) as server, RemoteModel(server.url, "small") as model:
        with pytest.raises(RemoteError) as caught:
            model.complete({})
        assert server.asked[0].headers["Authorization"] == "Bearer sk-secret"
        assert "refuses the key" in str(caught.value)
        assert "BARELOOP_API_KEY" in str(caught.value)
        assert "--api-key-file" in str(caught.value)
        assert "sk-secret" not in f"{caught.value} {model!r}"
        monkeypatch.setenv("BARELOOP_API_KEY", "ours")
        for key, sent in ((None, "ours"), ("given", "given")):
            with RemoteModel(server.url, "small", key) as other, pytest.raises(RemoteError):
                other.complete({})
            assert server.asked[-1].headers["Authorization"] == f"Bearer {sent}"


def test_without_a_key_none_is_sent():
    with serving(answering(error("key please", 401))) as server, RemoteModel(server.url, "small") as model:
        with pytest.raises(RemoteError, match="asks for a key"):
            model.complete({})
        assert "Authorization" not in server.asked[0].headers


def test_a_password_in_the_url_is_sent_and_never_shown():
    with serving(answering(error("no, hunter2", 401))) as server:
        url = server.url.replace("http://", "http://me:hunter2@")
        with RemoteModel(url, "small") as model, pytest.raises(RemoteError) as caught:
            model.complete({})
        assert server.asked[0].headers["Authorization"].startswith("Basic ")
        assert model.url == server.url
        assert "hunter2" not in str(caught.value)


def test_a_header_with_the_password_that_a_server_repeats_is_not_shown():
    def repeat(asked):
        return error(f"not allowed: {asked.headers['Authorization']}, p@ss", 403)

    with serving(repeat) as server:
        url = server.url.replace("http://", "http://me:p%40ss@")
        with RemoteModel(url, "small") as model, pytest.raises(RemoteError) as caught:
            model.complete({})
        assert server.asked[0].headers["Authorization"] == "Basic bWU6cEBzcw=="
        assert '"not allowed: Basic […], […]"' in str(caught.value)


def test_an_unknown_model_is_answered_with_the_names_of_the_known_ones():
    def answer(asked):
        return Answer(LISTED) if asked.path == "/v1/models" else error("model not found", 404)

    with serving(answer) as server, RemoteModel(server.url, "smal") as model:
        for ask in (model.check, lambda: model.complete({})):
            with pytest.raises(RemoteError, match=r"no model 'smal'; it has 'small', 'org/large'$"):
                ask()
        assert RemoteModel(server.url, "small").check() is None
        assert model.names() == ["small", "org/large"]


def test_the_window_is_that_of_the_listed_model_or_of_the_properties():
    listed = {"/v1/models": LISTED, "/props": {"default_generation_settings": {"n_ctx": 4096}}}
    with serving(lambda asked: Answer(listed[asked.path])) as server:
        assert RemoteModel(server.url, "org/large").max_length() == 512
        assert RemoteModel(server.url, "small").max_length() == 4096
    with serving(answering(error("", 404))) as server:
        assert RemoteModel(server.url, "small").max_length() is None


def test_each_form_of_tokenize_is_tried():
    def ours(asked):
        return Answer({"tokens": [1, 7]} if asked.body["add_special_tokens"] else {"tokens": [7]})

    def llama_cpp(asked):
        return Answer({"tokens": [5] if asked.body.get("content") else []})  # it does not know `prompt`

    with serving(ours) as server, RemoteModel(server.url, "small") as model:
        assert (model.tokenize("a"), model.tokenize("a", False)) == ([1, 7], [7])
        assert server.asked[0].body == {"model": "small", "prompt": "a", "add_special_tokens": True}
    with serving(llama_cpp) as server, RemoteModel(server.url, "small") as model:
        assert (model.tokenize("a"), model.tokenize("b"), model.tokenize("")) == ([5], [5], [])
        assert len(server.asked) == 4
        assert server.asked[-1].body == {"model": "small", "content": "", "add_special": True}
    with serving(answering(error("", 404))) as server, RemoteModel(server.url, "small") as model:
        assert (model.tokenize("a"), model.tokenizer_info(), model.detokenize([1])) == (None, None, None)


def test_the_tokenizer_is_described_by_itself_or_by_the_properties():
    info = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ x }}"}
    for path in ("/tokenizer_info", "/props"):
        answers = {path: Answer(info)}
        with serving(lambda asked, known=answers: known.get(asked.path, error("", 404))) as server:
            assert RemoteModel(server.url, "small").tokenizer_info() == info


def test_events_are_streamed():
    chunks = [{"choices": [{"text": text, "finish_reason": None}]} for text in ("a", "b")]
    with serving(answering(Answer([": ping\n\n", *sse(*chunks), "data: after the end\n\n"]))) as server:
        model = RemoteModel(server.url, "small")
        assert list(model.stream("/completions", {"prompt": "x"})) == chunks
        assert server.asked[0].body == {"model": "small", "prompt": "x", "stream": True}
        list(model.stream("chat/completions", {}))
        assert server.paths() == ["/v1/completions", "/v1/chat/completions"]


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (Answer(sse({"choices": []}, {"error": {"message": "no memory"}})), 'broke the answer off: "no memory"'),
        (Answer(sse({"choices": []}, end=False)), "ended in the middle"),
        (Answer([*sse({"choices": []}, end=False), "data: {"], headers={"Content-Length": "999"}), "broke in"),
        (Answer([*sse({"choices": []}, end=False), "data: {\n\n"]), "an event that is not an object of JSON"),
    ],
)  # fmt: skip
def test_a_stream_that_fails_in_the_middle_keeps_what_came_and_says_why(answer, line):
    with serving(answering(answer)) as server, RemoteModel(server.url, "small") as model:
        events = model.stream("/completions", {})
        assert next(events) == {"choices": []}
        with pytest.raises(RemoteError, match=line):
            next(events)
        assert len(server.asked) == 1


def test_a_stream_may_end_without_a_mark_if_the_answer_has_ended():
    last = {"choices": [{"text": "", "finish_reason": "stop"}]}
    with serving(answering(Answer(sse(last, end=False)))) as server, RemoteModel(server.url, "small") as model:
        assert list(model.stream("/completions", {})) == [last]


def test_a_stream_is_refused_as_a_plain_request_is():
    with serving(answering(error("", 503), error("too long", 400))) as server, RemoteModel(server.url) as model:
        with pytest.raises(RemoteError, match='400: "too long"'):
            next(model.stream("/completions", {}))
        server.answer = answering(Answer(COMPLETION))
        with pytest.raises(RemoteError, match="did not answer as"):
            next(model.stream("/completions", {}))


def test_many_threads_share_a_client():
    with serving(lambda asked: Answer({"choices": [asked.body["prompt"]]})) as server, RemoteModel(server.url) as model:
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda number: model.complete({"prompt": number}), range(64)))
        assert [answer["choices"] for answer in answers] == [[number] for number in range(64)]


def test_closing_ends_the_waits_of_other_threads(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 60.0)
    asked = threading.Event()

    def answer(_):
        asked.set()
        return error("oops", 500)

    with serving(answer) as server, ThreadPoolExecutor(1) as pool:
        model = RemoteModel(server.url)
        future = pool.submit(model.complete, {})
        assert asked.wait(30)
        model.close()
        with pytest.raises(BareloopError):
            future.result(30)
