"""Bodies that are no requests, and the agreement of the reader with the JSON schemas of the same rules."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.serve.protocol import fields
from engine.serve.protocol.errors import ApiError
from engine.serve.protocol.fields import read_request, schema_of, write_path
from engine.serve.protocol.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)

MESSAGES = [{"role": "user", "content": "Hi"}]
VALID = {
    ChatRequest: {"messages": MESSAGES},
    CompletionRequest: {"prompt": "Once"},
    TokenizeRequest: {"prompt": "Once"},
    DetokenizeRequest: {"tokens": [1, 2]},
    EmbeddingRequest: {"input": ["a", "b"]},
}
COMMON = (
    *(None, True, False, 0, 1, -1, 2, 0.5, 1.5, 1.0, 2.0, 1e300, 2**64, "", "a", "x" * 2000, [], {}),
    *(
        [1],
        [1, 2],
        [-1],
        [True],
        [1.5],
        [1.0],
        ["a"],
        [""],
        ["a", 1],
        [1, "a"],
        [[]],
        [[1]],
        [[1], ["a"]],
        [[1], []],
        [None],
    ),
    *(
        [1] * 1025,
        ["a"] * 65,
        ["a"] * 129,
        [[1]] * 129,
        [{}] * 129,
        [{"role": "user"}],
        [{"role": 1}],
        [{"role": None}],
        [{}],
    ),
    *({"a": 1}, {"1": 1}, {"01": 1}, {"1\n": 1}, {"1": 101}, {"1": True}, {str(i): 0 for i in range(1025)}),
    *(
        {"messages": 1},
        {"include_usage": True},
        {"include_usage": 1},
        {"include_usage": None},
        {str(i): 0 for i in range(65)},
    ),
    *(
        {"type": "text"},
        {"type": "json_object", "schema": {}},
        {"type": "json_object", "schema": 1},
        {"type": "json_schema"},
    ),
    *(
        {"type": "json_schema", "json_schema": {"schema": {}, "strict": None}},
        {"type": "json_schema", "json_schema": {"a": 1}},
    ),
)


def near(schema):
    """Values at the limits of a schema, on both sides."""
    for word, value in schema.items():
        if word in ("minimum", "maximum", "exclusiveMinimum"):
            yield from (value - 1, value, value + 1, value + 0.25, value - 0.25)
        elif word in ("minLength", "maxLength"):
            yield from ("x" * (value + more) for more in (-1, 0, 1))
        elif word == "enum":
            yield from value
        elif word == "anyOf":
            for each in value:
                yield from near(each)


def choices_for(kind):
    """All values to try for each field."""
    properties = schema_of(kind)["properties"]
    return {name: [*COMMON, *near(schema)] for name, schema in properties.items()}


def refusal(kind, value):
    try:
        read_request(kind, json.dumps(value).encode())
    except ApiError as error:
        assert (error.status, error.kind) == (400, "invalid_request_error")
        assert len(error.message) < 600
        return error
    return None


def agree(validates, kind, value):
    """Whether reader and schema say the same. Skips what no schema can say: the limit of prompts x n."""
    error = refusal(kind, value)
    assume(error is None or "replies: use up to" not in error.message)
    return validates(schema_of(kind), value) == (error is None)


@pytest.mark.parametrize("kind", VALID)
def test_the_schema_accepts_what_the_reader_accepts_in_every_field(kind, validates):
    schema, differences, accepted = schema_of(kind), [], 0
    assert refusal(kind, VALID[kind]) is None
    assert validates(schema, VALID[kind])
    for name, values in choices_for(kind).items():
        for value in values:
            body = VALID[kind] | {name: value}
            is_read = refusal(kind, body) is None
            accepted += is_read
            if validates(schema, body) != is_read:
                differences.append((name, str(value)[:80], is_read))
    assert differences == []
    assert accepted > 5


@settings(max_examples=150)
@given(st.data())
def test_the_schema_accepts_what_the_reader_accepts_in_several_fields(validates, data):
    kind = data.draw(st.sampled_from([*VALID]))
    choices = choices_for(kind)
    groups = [
        ["stream", "stream_options"],
        ["logprobs", "top_logprobs", "prompt_logprobs", "stream"],
        ["max_tokens", "echo"],
        ["add_generation_prompt", "continue_final_message"],
        ["prompt", "content", "messages"],
        [*choices],
    ]
    names = [name for name in data.draw(st.sampled_from(groups)) if name in choices]
    assume(names)
    changes = data.draw(st.dictionaries(st.sampled_from(names), st.integers(0, 200), max_size=4))
    body = VALID[kind] | {name: choices[name][index % len(choices[name])] for name, index in changes.items()}
    dropped = data.draw(st.sets(st.sampled_from([*VALID[kind]])))
    assert agree(validates, kind, {name: value for name, value in body.items() if name not in dropped})


@pytest.mark.parametrize("kind", VALID)
def test_null_is_the_same_as_absent(kind):
    optional = schema_of(kind)["properties"].keys() - {"messages", "prompt", "tokens", "input"}
    body = VALID[kind] | dict.fromkeys(optional)
    assert read_request(kind, json.dumps(body).encode()) == read_request(kind, json.dumps(VALID[kind]).encode())


def test_unknown_fields_are_ignored():
    assert refusal(ChatRequest, VALID[ChatRequest] | {"keep_alive": -1, "x": {"y": [None]}}) is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not valid JSON: Expecting value"),
        (b"{", "the body is not valid JSON: Expecting property name"),
        (b"[]", "the body = []: use a JSON object"),
        (b'"text"', "the body = 'text': use a JSON object"),
        (b"null", "the body = None: use a JSON object"),
        (b"\xff{}", "the body is not UTF-8: byte 0 is 0xff"),
        (b'{"messages":"\xed\xa0\x80"}', "the body is not UTF-8: byte 13 is 0xed"),
        (b"\xef\xbb\xbf{}", "the body is not valid JSON: Unexpected UTF-8 BOM"),
        ("{}".encode("utf-16"), "the body is not UTF-8: byte 0 is 0xff"),
        (b'{"a": NaN}', "the body has NaN, which is not a JSON number"),
        (b'{"a": [-Infinity]}', "the body has -Infinity, which is not a JSON number"),
        (b'{"a": 1e999}', "the body has '1e999', which is too large a number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "the body has a number with too many digits"),
        (b"[" * 200_000, "the body has 200,000 lists and objects: use up to 50,000"),
        (b"[" * 40_000, "the body is nested too deeply: use up to 100 levels"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "a is nested too deeply: use up to 100 levels"),
        (b'{"a": [' + b"{}," * 60_000 + b"{}]}", "the body has 60,003 lists and objects: use up to 50,000"),
        (b'{"\\ud800": 1}', "the body is not valid Unicode: character 0 is U+D800, half of a surrogate pair"),
        (b'{"a": [{"b c": "x\\uDfff"}]}', "a[0]['b c'] is not valid Unicode: character 1 is U+DFFF"),
    ],
)
def test_what_is_not_a_json_object_is_refused(body, message):
    with pytest.raises(ApiError) as caught:
        read_request(ChatRequest, body)
    assert caught.value.status == 400
    assert caught.value.message.startswith(message)


def test_depth_and_number_of_lists_are_limited_inside_texts_neither():
    deep = {"a": 1}
    for _ in range(98):
        deep = {"a": deep}
    assert refusal(ChatRequest, VALID[ChatRequest] | {"x": deep}) is None
    text = '["' * 60_000 + "\\{\U0001f600"
    body = json.dumps({"prompt": text}).encode()
    assert read_request(CompletionRequest, body).prompt == text


def test_a_body_of_quotes_and_backslashes_takes_linear_time(monkeypatch):
    monkeypatch.setattr(fields, "MAX_CONTAINERS", 0)  # so that strings are looked for; quadratic would take minutes
    with pytest.raises(ApiError):
        read_request(ChatRequest, b'"[\\' * 500_000)


def test_the_last_of_two_equal_names_counts():
    assert read_request(CompletionRequest, b'{"prompt": "a", "prompt": "b"}').prompt == "b"


def test_paths_are_written_as_clients_know_them():
    assert write_path(("messages", 2, "content")) == "messages[2].content"
    assert write_path(("logit_bias", "-1")) == "logit_bias['-1']"
    assert len(write_path(("x" * 5000,))) < 100


@pytest.mark.parametrize(
    ("body", "size"),
    [
        (b"", 0),
        (b'{"a": "data:image/png;base64,AAAA", "b": 1}', len(b'{"a": "", "b": 1}') - 1),
        (rb'{"a": "data:image\/png;base64,AA\/A", "b": 1}', len(b'{"a": "", "b": 1}') - 1),
        (b'{"a": ["data:x", "data:y"]}', len(b'{"a": ["", ""]}') - 2),
        (b'{"a": "data:x', len(b'{"a": ')),
        (b'{"a": " data:x"}', len(b'{"a": " data:x"}')),
    ],
)
def test_the_size_of_a_body_leaves_out_data_urls(body, size):
    assert fields.text_size(body) == size


def test_nothing_outside_a_string_is_left_out_of_the_size(monkeypatch):
    body = rb'{"a": "\"data:", "b": [1, 1, 1, "data:", 1, 1]}'
    assert len(body) - fields.text_size(body) == len(rb"\"data:" + b"data:") + 1 - len(b'"')
    monkeypatch.setattr(fields, "MAX_URLS", 2)
    assert fields.text_size(b'"data:x"' * 3) == 3 * 8 - 2 * 7
