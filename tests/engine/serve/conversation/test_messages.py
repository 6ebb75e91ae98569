"""Messages of requests: what templates are given, and refusals that name the place."""

from __future__ import annotations

import copy
import json

import pytest

from engine.serve.conversation.messages import MAX_DEPTH, prepare
from engine.serve.protocol.common import MAX_TEXT
from engine.serve.protocol.errors import ApiError


def call(arguments, **fields):
    return {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}} | fields


def assistant(**fields):
    return {"role": "assistant", "content": None} | fields


def refusal(messages) -> ApiError:
    with pytest.raises(ApiError) as caught:
        prepare(messages)
    assert caught.value.status == 400 and len(caught.value.message) < 500
    return caught.value


def test_messages_keep_what_templates_read_and_nothing_else():
    messages = [
        {"role": "developer", "content": "Be brief.", "name": "boss", "weight": 3},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "tool_calls": [1]},
        assistant(reasoning_content="hm", tool_calls=[call('{"x": 1}', index=0)], audio=None),
        {"role": "tool", "content": "42", "tool_call_id": "call_1", "name": "f"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "reasoning": "why", "tool_calls": []},
        {"role": "assistant", "content": None, "refusal": "Never."},
        {"role": "critic", "content": ""},
    ]
    before = copy.deepcopy(messages)
    assert prepare(messages) == [
        {"role": "system", "content": "Be brief.", "name": "boss"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call({"x": 1})]},
        {"role": "tool", "content": "42", "tool_call_id": "call_1", "name": "f"},
        {"role": "assistant", "content": "No.", "reasoning_content": "why"},
        {"role": "assistant", "content": "Never."},
        {"role": "critic", "content": ""},
    ]
    assert messages == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [("", {}), (None, {}), ("{}", {}), ({"a": [1]}, {"a": [1]}), (' {"a": "é\\n"}', {"a": "é\n"})],
)
def test_arguments_of_tool_calls_become_objects(arguments, expected):
    (message,) = prepare([assistant(tool_calls=[call(arguments)])])
    assert message["tool_calls"][0]["function"]["arguments"] == expected


USER = {"role": "user", "content": "Hi"}
BAD = [
    (None, "messages"),
    ([], "messages"),
    ({"role": "user"}, "messages"),
    ([USER, "Hi"], "messages[1]"),
    ([USER, {"content": "Hi"}], "messages[1].role"),
    ([{"role": "x" * 300, "content": "Hi"}], "messages[0].role"),
    ([{"role": 7, "content": "Hi"}], "messages[0].role"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"role": "user", "content": None}], "messages[0].content"),
    ([{"role": "tool", "content": None}], "messages[0].content"),
    ([USER, assistant()], "messages[1].content"),
    ([USER, assistant(tool_calls=[])], "messages[1].content"),
    ([{"role": "user", "content": 5}], "messages[0].content"),
    ([{"role": "user", "content": []}], "messages[0].content"),
    ([{"role": "user", "content": ["Hi"]}], "messages[0].content[0]"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
    ([USER, {"role": "user", "content": [{"type": "input_audio"}]}], "messages[1].content[0].type"),
    ([USER, {"role": "user", "content": "x" * (MAX_TEXT + 1)}], "messages"),
    ([USER, USER | {"x" * (MAX_TEXT + 1): 1}], "messages"),
    ([{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}], "messages[0].content[0].type"),
    ([{"role": "user", "content": "half \ud83d"}], "messages[0].content"),
    ([{"role": "user", "content": "Hi", "name": 3}], "messages[0].name"),
    ([{"role": "tool", "content": "Hi", "tool_call_id": ""}], "messages[0].tool_call_id"),
    ([assistant(reasoning_content=["x"])], "messages[0].reasoning_content"),
    ([assistant(refusal=["x"])], "messages[0].refusal"),
    ([assistant(function_call={"name": "f"})], "messages[0].function_call"),
    ([assistant(tool_calls="f")], "messages[0].tool_calls"),
    ([assistant(tool_calls=["f"])], "messages[0].tool_calls[0]"),
    ([assistant(tool_calls=[call("{}"), call("{}", type="custom")])], "messages[0].tool_calls[1].type"),
    ([assistant(tool_calls=[call("{}", id=5)])], "messages[0].tool_calls[0].id"),
    ([assistant(tool_calls=[{"function": {"arguments": "{}"}}])], "messages[0].tool_calls[0].function.name"),
    *(
        ([assistant(tool_calls=[call(arguments)])], "messages[0].tool_calls[0].function.arguments")
        for arguments in ("{", "[]", "3", '{"a": NaN}', "x", ["a"], "[" * 5000, '{"a":' * 200 + "1" + "}" * 200)
    ),
    ([assistant(tool_calls=[call('{"a": "\\ud83d"}')])], "messages[0].tool_calls[0].function.arguments.a"),
]


@pytest.mark.parametrize(("messages", "param"), BAD, ids=[f"{index}-{param}" for index, (_, param) in enumerate(BAD)])
def test_what_is_wrong_is_refused_with_its_place(messages, param):
    error = refusal(messages)
    assert error.param == param and error.message.startswith(param.split("]")[0])


def test_a_refused_part_names_its_type_and_the_way_out():
    error = refusal([{"role": "user", "content": [{"type": "input_audio"}]}])
    what = "messages[0].content[0]: parts of type 'input_audio' are not supported"
    assert error.message == f"{what}: send text parts, or image_url parts of the user"


def test_messages_that_are_nested_too_deeply_are_refused():
    def nested(depth):
        return json.loads("[" * depth + "]" * depth)

    prepare([USER | {"extra": nested(MAX_DEPTH - 2)}])
    assert "nested" in refusal([USER | {"extra": nested(MAX_DEPTH - 1)}]).message
