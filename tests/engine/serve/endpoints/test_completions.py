"""/v1/completions, as lm-evaluation-harness, vLLM's tests and OpenAI's clients use it."""

from __future__ import annotations

import math

import pytest
import torch

from engine import SamplingParams

TEXT = "The capital of"


def complete(client, status=200, **body):
    answer = client.post("/v1/completions", json={"temperature": 0, "max_tokens": 8} | body)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_greedy_text_equals_the_engines(client, llm):
    (expected,) = llm.generate([TEXT], SamplingParams(max_new_tokens=8))
    answer = complete(client, prompt=TEXT)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (expected.text, expected.finish_reason)
    ids = llm.tokenizer.encode(TEXT)
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(ids), len(expected.token_ids))
    assert complete(client, prompt=ids)["choices"][0]["text"] == expected.text


def test_a_batch_has_choices_by_prompt_then_sample(client):
    answer = complete(client, prompt=[TEXT, "Water is"], n=2, temperature=1.0, seed=5)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    alone = [
        complete(client, prompt=text, temperature=1.0, seed=5 + k)["choices"][0]["text"]
        for text in (TEXT, "Water is")
        for k in (0, 1)
    ]
    assert [choice["text"] for choice in answer["choices"]] == alone
    assert alone[0] != alone[1]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_logprobs_have_the_chosen_token_and_the_most_likely(client, llm, count):
    (choice,) = complete(client, prompt=TEXT, logprobs=count, max_tokens=4)["choices"]
    logprobs = choice["logprobs"]
    assert {len(column) for column in logprobs.values()} == {4}
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert [
        choice["text"][offset:][: len(token)]
        for offset, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True)
    ] == logprobs["tokens"]
    expected = torch.log_softmax(llm.logits(TEXT)[-1].double(), -1)
    assert logprobs["token_logprobs"][0] == pytest.approx(float(expected.max()), abs=1e-4)
    assert all(max(count, 1) <= len(top) <= count + 1 for top in logprobs["top_logprobs"])
    assert [max(top.values()) for top in logprobs["top_logprobs"]] == logprobs["token_logprobs"]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echo_scores_every_token_of_the_prompt(client, llm, max_tokens):
    ids = llm.tokenizer.encode("The sun is a star, and the moon")
    answer = complete(client, prompt=ids, logprobs=1, echo=True, max_tokens=max_tokens)
    (choice,) = answer["choices"]
    assert answer["usage"]["completion_tokens"] == max_tokens
    scores = choice["logprobs"]["token_logprobs"]
    assert len(scores) == len(ids) + max_tokens
    assert scores[0] is None and choice["logprobs"]["top_logprobs"][0] is None
    expected = torch.log_softmax(llm.logits(ids).double(), -1)[range(len(ids) - 1), ids[1:]]
    assert scores[1 : len(ids)] == pytest.approx(expected.tolist(), abs=1e-4)
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    tops = choice["logprobs"]["top_logprobs"]
    is_greedy = [score == max(top.values()) for score, top in zip(scores[1:], tops[1:], strict=True)]
    assert is_greedy[: len(ids) - 1] == [
        token == int(row.argmax()) for token, row in zip(ids[1:], llm.logits(ids), strict=False)
    ]


def test_a_second_request_that_begins_alike_gives_the_same_scores(client, llm):
    ids = (llm.tokenizer.encode("The sun is a star. ") * 60)[:300]
    first, second = (complete(client, prompt=[*ids, end], logprobs=2, echo=True, max_tokens=1) for end in (5, 6))
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= 128
    scores, others = (answer["choices"][0]["logprobs"]["token_logprobs"][1:300] for answer in (first, second))
    assert scores == pytest.approx(others, abs=1e-4)


def test_choices_after_one_question_share_it(client, llm):
    question = llm.tokenizer.encode("The sun is a star, the moon is a moon, and the earth is a planet. So is")
    choices = [llm.tokenizer.encode(text)[1:] for text in (" the moon", " Mars", " the sun and the stars")]
    body = {"echo": True, "logprobs": 1, "max_tokens": 1, "cache_salt": "alone"}
    together = complete(client, prompt=[question + choice for choice in choices], **body)
    assert together["usage"]["prompt_tokens_details"]["cached_tokens"] >= 2 * (len(question) - 1)
    expected = [torch.log_softmax(llm.logits(question + choice).double(), -1) for choice in choices]
    for entry, rows, choice in zip(together["choices"], expected, choices, strict=True):
        ids = question + choice
        scores = entry["logprobs"]["token_logprobs"][1 : len(ids)]
        assert scores == pytest.approx(rows[range(len(ids) - 1), ids[1:]].tolist(), abs=1e-4)


def test_a_stream_equals_the_whole_answer(client, events):
    body = {"prompt": [TEXT, "Water is"], "max_tokens": 12, "temperature": 0, "logprobs": 2, "stop": ["e "]}
    whole = complete(client, **body)["choices"]
    chunks = events("/v1/completions", body | {"stream": True})
    assert len({chunk["id"] for chunk in chunks}) == 1
    for choice in whole:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [choice["finish_reason"]]
        for name, column in choice["logprobs"].items():
            assert [entry for part in parts for entry in part["logprobs"][name]] == column


def test_a_batch_of_ids_is_streamed_by_index_as_its_texts_are(client, events, llm):
    texts = [TEXT, "Water is", "The sun"]
    whole = [choice["text"] for choice in complete(client, prompt=texts)["choices"]]
    body = {"prompt": [llm.tokenizer.encode(text) for text in texts], "max_tokens": 8, "temperature": 0}
    parts = [part for chunk in events("/v1/completions", body | {"stream": True}) for part in chunk["choices"]]
    assert ["".join(part["text"] for part in parts if part["index"] == index) for index in range(3)] == whole
    assert sorted(part["index"] for part in parts if part["finish_reason"]) == [0, 1, 2]


def test_text_offsets_are_right_where_a_stop_string_holds_text_back(client, events):
    body = {"prompt": TEXT, "max_tokens": 24, "temperature": 0, "logprobs": 1}
    text = complete(client, **body)["choices"][0]["text"]
    stop = text[8:14]
    (whole,) = complete(client, **body, stop=stop)["choices"]
    assert (whole["text"], whole["finish_reason"]) == (text[: text.index(stop)], "stop")
    parts = [chunk["choices"][0] for chunk in events("/v1/completions", body | {"stop": stop, "stream": True})]
    assert "".join(part["text"] for part in parts) == whole["text"]
    assert [offset for part in parts for offset in part["logprobs"]["text_offset"]] == whole["logprobs"]["text_offset"]
    tokens = whole["logprobs"]["tokens"]
    assert whole["logprobs"]["text_offset"] == [len("".join(tokens[:index])) for index in range(len(tokens))]


def test_without_logprobs_there_are_none_and_unknown_fields_are_ignored(client):
    (choice,) = complete(client, prompt=TEXT, logprobs=None, mood="good")["choices"]
    assert choice["logprobs"] is None


@pytest.mark.parametrize("body", [b"", b"[]", b'"Once"', b"null", b"{", b"\xff{}"])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_a_body_that_is_no_json_object_is_refused(client, path, body):
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_body_of_another_type_is_refused(client):
    answer = client.post("/v1/completions", content=b'{"prompt": "a"}', headers={"content-type": "text/plain"})
    assert answer.status_code == 415


def test_n_predict_limits_a_reply_and_may_be_the_rest_of_the_window(client, llm):
    def generated(**body):
        return complete(client, prompt=[5] * (llm.max_length - 30), ignore_eos=True, **body)["usage"][
            "completion_tokens"
        ]

    assert (generated(n_predict=3), generated(n_predict=-1)) == (3, 30)


def test_echo_is_in_the_stream_once(client, events):
    chunks = events(
        "/v1/completions", {"prompt": TEXT, "echo": True, "max_tokens": 3, "temperature": 0, "stream": True}
    )
    text = "".join(part["text"] for chunk in chunks for part in chunk["choices"])
    assert text == complete(client, prompt=TEXT, echo=True, max_tokens=3)["choices"][0]["text"]
    assert text.startswith(TEXT)


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_usage": True}])
def test_usage_comes_at_the_end_of_a_stream_if_wanted(events, options):
    chunks = events("/v1/completions", {"prompt": TEXT, "max_tokens": 3, "stream": True, "stream_options": options})
    wanted = bool(options and options.get("include_usage"))
    assert [chunk for chunk in chunks if not chunk["choices"]] == chunks[-1:] * wanted
    assert all(("usage" in chunk) == wanted for chunk in chunks)
    assert not wanted or chunks[-1]["usage"]["completion_tokens"] == 3


def test_continuous_usage_counts_up(events):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": TEXT, "max_tokens": 5, "stream": True, "stream_options": options, "ignore_eos": True}
    counts = [chunk["usage"]["completion_tokens"] for chunk in events("/v1/completions", body)]
    assert counts == sorted(counts) and counts[-1] == 5


def test_logit_bias_and_stop_token_ids(client, llm):
    (choice,) = complete(client, prompt=TEXT, logit_bias={"77": 100}, stop_token_ids=[77], return_token_ids=True)[
        "choices"
    ]
    assert (choice["token_ids"], choice["finish_reason"]) == ([77], "stop")
    assert choice["prompt_token_ids"] == llm.tokenizer.encode(TEXT)


def test_a_stream_has_the_ids_of_prompt_and_reply_once(client, events):
    body = {"prompt": [TEXT, "Water is"], "n": 2, "max_tokens": 9, "temperature": 0, "return_token_ids": True}
    whole = complete(client, **body)["choices"]
    chunks = events("/v1/completions", body | {"stream": True})
    for choice in whole:
        first, *rest = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert first["prompt_token_ids"] == choice["prompt_token_ids"]
        assert not any("prompt_token_ids" in part for part in rest)
        assert [token for part in (first, *rest) for token in part["token_ids"]] == choice["token_ids"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": TEXT, "seed": 2**64}, "seed"),
        ({"prompt": TEXT, "max_tokens": 0}, "max_tokens"),
        ({"prompt": TEXT, "max_tokens": -1}, "max_tokens"),
        ({"prompt": TEXT, "best_of": 3}, "best_of"),
        ({"prompt": TEXT, "suffix": "."}, "suffix"),
        ({"prompt": TEXT, "logprobs": 21}, "logprobs"),
        ({"prompt": TEXT, "stream": False, "stream_options": {"include_usage": False}}, "stream_options"),
        ({"prompt": TEXT, "stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": TEXT, "temperature": math.pi}, "temperature"),
    ],
)
def test_bad_fields_are_refused_with_their_name(client, body, param):
    error = complete(client, 400, **body)["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize("body", [{"prompt": [5, 10**6]}, {"prompt": TEXT, "logit_bias": {"999999": 1}}])
def test_ids_outside_the_vocabulary_are_refused(client, body):
    assert "999999" in (text := complete(client, 400, **body)["error"]["message"]) or "1000000" in text


def test_a_prompt_that_fills_the_window_is_refused_with_both_numbers(client, llm):
    error = complete(client, 400, prompt=[5] * llm.max_length)["error"]
    assert (error["code"], error["n_prompt_tokens"], error["n_ctx"]) == (
        "context_length_exceeded",
        llm.max_length,
        llm.max_length,
    )
    (choice,) = complete(client, prompt=[5] * (llm.max_length - 3), ignore_eos=True)["choices"]
    assert choice["finish_reason"] == "length"
