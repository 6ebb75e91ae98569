"""Streamed replies: content, reasoning and tool calls, the same however the text is split."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.serve.conversation.replies import Delta, ReplyParser, new_call_id
from engine.serve.conversation.tools import GENERIC, HERMES, LLAMA, MISTRAL

NAMES = frozenset({"f", "g"})
ARGUMENTS = '{"a": "x}<y> \\"{", "b": [1, {"c": null}]}'
CALL = f'<tool_call>\n{{"name": "f", "arguments": {ARGUMENTS}}}\n</tool_call>'
EMPTY = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'


def parser(tool_format=HERMES, in_reasoning=False, separates=True, **options) -> ReplyParser:
    ids = map("call_{}".format, itertools.count())
    return ReplyParser(tool_format, in_reasoning, separates, names=NAMES, new_id=lambda: next(ids), **options)


def joined(deltas: list[Delta]) -> dict:
    """The message that a client makes of deltas."""
    message: dict = {"role": "assistant", "content": None}
    for delta in deltas:
        (kind, value), *others = delta.as_dict().items()
        assert value and not others
        if kind != "tool_calls":
            message[kind] = (message.get(kind) or "") + value
            continue
        calls = message.setdefault("tool_calls", [])
        (entry,) = value
        index = entry.pop("index")
        if index == len(calls):
            assert entry.keys() == {"id", "type", "function"} and entry["function"]["arguments"] == ""
            calls.append(entry)
        else:
            assert index == len(calls) - 1 and entry.keys() == {"function"} and list(entry["function"]) == ["arguments"]
            calls[index]["function"]["arguments"] += entry["function"]["arguments"]
    if message["content"] is None and "tool_calls" not in message:
        message["content"] = ""
    return message


def read(text: str, tool_format=HERMES, size: int | None = None, **options) -> dict:
    """The message of a whole reply, pushed in pieces; its deltas make the same message."""
    reader = parser(tool_format, **options)
    deltas = []
    for start in range(0, len(text), size or len(text) or 1):
        deltas += reader.push(text[start : start + (size or len(text))])
    deltas += reader.flush()
    message = reader.message()
    assert joined(deltas) == message and reader.flush() == []
    assert reader.has_calls == ("tool_calls" in message)
    return message


def calls(message: dict) -> list[tuple[str, str]]:
    assert [call["id"] for call in message.get("tool_calls", [])] == [
        f"call_{index}" for index in range(len(message.get("tool_calls", [])))
    ]
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]


F, G = ("f", ARGUMENTS), ("g", "{}")
ONE = ("f", '{"a": 1}')
REPLIES = [
    # hermes: content, calls
    (HERMES, "", "", []),
    (HERMES, " Hello <b>\n\n", " Hello <b>\n\n", []),
    (HERMES, CALL, None, [F]),
    (GENERIC, f"\n\n{CALL}\n{EMPTY}\n", None, [F, G]),
    (HERMES, f"Let me see.\n{CALL}", "Let me see.", [F]),
    (HERMES, f"A\n{CALL}\n{EMPTY}\n\nB\n", "A\nB\n", [F, G]),
    (HERMES, f"{EMPTY} B", "B", [G]),
    (HERMES, '<tool_call>{"name":"f","arguments":{"a": 1}}</tool_call>', None, [ONE]),
    (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', None, [ONE]),
    (HERMES, '<tool_call>{"thought": "{", "name": "f", "parameters": {"a": 1}, "id": "}"}</tool_call>', None, [ONE]),
    (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', None, [ONE]),
    (HERMES, '<tool_call>{"name": "g", "arguments": null}</tool_call><tool_call>{"name": "g"}', None, [G, G]),
    # what models forget
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}', None, [ONE]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1}\n</tool_call>\nok', "ok", [ONE]),
    (HERMES, f'<tool_call>{{"name": "f", "arguments": {{"a": 1}}}} {EMPTY} ok', "ok", [ONE, G]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": [1}</tool_call>ok', "ok", [("f", '{"a": [1}')]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "1', None, [("f", '{"a": "1')]),
    (HERMES, '<tool_call>{"name": "g", "arguments": {}}\n</tool_c', None, [G]),
    # no calls
    *(
        (HERMES, text, text, [])
        for text in (
            "a <tool_cal",
            "<tool_call>\n",
            "x <tool_call>\nlook</tool_call> y",
            '<tool_call>{"name": "h", "arguments": {}}</tool_call>',
            '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
            '<tool_call>{"name": "f", "arguments": "[1]"}</tool_call>',
            '<tool_call>{"name": ["f"], "arguments": {}}</tool_call>',
            '<tool_call>{"name" "f", "arguments": {}}</tool_call>',
            '<tool_call>{"name": "f" "arguments": {}}</tool_call>',
            '<tool_call>{"arguments": {"a": 1}}</tool_call>',
            '<tool_call>{"name": "f"',
            '<tool_call>{"name": "f\n", "arguments": {}}',
            "<tool_call>{name: f}\n</tool_call>\n",
        )
    ),
    (HERMES, f"<tool_call>\n{EMPTY}", "<tool_call>", [G]),
    (HERMES, f'<tool_call>{{"name": "f\n{EMPTY}', '<tool_call>{"name": "f', [G]),
    (HERMES, '<tool_call>{"name": "g", "arguments": {}, oops</tool_call>', ", oops</tool_call>", [G]),
    # llama: the whole reply, or none of it
    (LLAMA, '{"name": "f", "parameters": {"a": 1}}', None, [ONE]),
    (LLAMA, '\n{"type": "function", "name": "f", "parameters": {"a": 1}}\n', None, [ONE]),
    (LLAMA, '<|python_tag|>{"name": "g", "parameters": {}}; {"name": "f", "parameters": {"a": 1}}', None, [G, ONE]),
    (LLAMA, '{"name": "g", "parameters": {}}\n\nThat was it.', "That was it.", [G]),
    (LLAMA, '{"name": "g", "parameters": {}}; so', "; so", [G]),
    *(
        (LLAMA, text, text, [])
        for text in (
            "Hi",
            " <|python_ta",
            '<|python_tag|>search.call(query="x")',
            'Call {"name": "f", "parameters": {}}',
            '{"city": "Paris", "name": "f", "parameters": {}}',
            '{"name": "h", "parameters": {}}',
            '{"name": "f", "parameters": ',
        )
    ),
    # mistral
    (MISTRAL, '[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]', None, [ONE, G]),
    (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "abcdefghi"}]\n', None, [ONE]),
    (MISTRAL, '[{"name": "g", "arguments": {}}] done', "done", [G]),
    *((MISTRAL, text, text, []) for text in ("[TOOL", "[1, 2]", "[", " Hi [", '[{"name": "h"}]')),
    # no tools were given
    (None, f"a {CALL} \n", f"a {CALL} \n", []),
]


@pytest.mark.parametrize("size", [None, 1, 2, 7])
@pytest.mark.parametrize(("tool_format", "text", "content", "expected"), REPLIES)
def test_content_and_calls_are_separated_whatever_the_piece_size(tool_format, text, content, expected, size):
    message = read(text, tool_format, size)
    assert (message["content"], calls(message)) == (content, expected)


@pytest.mark.parametrize("size", [None, 1, 3])
def test_reasoning_is_separated_from_content_and_calls(size):
    text = f"\n<think>\nhm {CALL}\n\n</think>\n\nYes.\n{CALL}"
    reasoning = f"hm {CALL}"
    for tool_format in (HERMES, None):
        answer = {"content": "Yes."} if tool_format else {"content": f"Yes.\n{CALL}"}
        message = read(text, tool_format, size)
        assert message.items() >= (answer | {"reasoning_content": reasoning}).items()
        assert calls(message) == ([F] if tool_format else [])
        message = read(text[len("\n<think>") :], tool_format, size, in_reasoning=True)
        assert message.items() >= (answer | {"reasoning_content": reasoning}).items()
    assert read("<think>\n\n</think>\n\nHi ", HERMES, size) == {"role": "assistant", "content": "Hi "}
    cut = {"role": "assistant", "content": "", "reasoning_content": "so\n\n</thi"}
    assert read("so\n\n</thi", HERMES, size, in_reasoning=True) == cut
    llama = read('<think>x</think>\n\n{"name": "g", "parameters": {}}', LLAMA, size)
    assert calls(llama) == [G] and llama["reasoning_content"] == "x" and llama["content"] is None


@pytest.mark.parametrize("size", [None, 1, 3])
def test_reasoning_that_is_not_separated_is_content_with_its_tags(size):
    text = f" <think>\nhm {CALL}\n</think>\n\n"
    for tool_format in (HERMES, None):
        for whole in (f"{text}Yes.", text, " <thi", "<think>\n", "Yes.", "\n"):
            message = read(whole, tool_format, size, separates=False)
            assert message == {"role": "assistant", "content": whole}
    message = read(text + CALL, HERMES, size, separates=False)
    assert message["content"] == text.rstrip() and calls(message) == [F]
    message = read(f"hm</think>{CALL}", HERMES, size, separates=False, in_reasoning=True)
    assert message["content"] == "hm</think>" and calls(message) == [F]


def test_every_delta_comes_as_soon_as_it_is_certain():
    def pushed(reader, *texts):
        return [[delta.as_dict() for delta in reader.push(text)] for text in texts]

    reader = parser()
    assert pushed(reader, "<thi", "nk>", "a", " b", " </", "x", "</think>") == [
        [], [], *([{"reasoning_content": text}] for text in ("a", " b", )), [], [{"reasoning_content": " </x"}], [],
    ]  # fmt: skip
    assert pushed(reader, "\n", "Hi", " <", "b>", "\n<tool", "_call>") == [
        [], [{"content": "Hi"}], [], [{"content": " <b>"}], [], [],
    ]  # fmt: skip
    head = {"index": 0, "id": "call_0", "type": "function", "function": {"name": "f", "arguments": ""}}

    def piece(text):
        return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}

    assert pushed(reader, '\n{"name": "', 'f", ', '"arguments": {"a', '": ', "1}", "}\n") == [
        [], [], [{"tool_calls": [head]}, piece('{"a')], [piece('": ')], [piece("1}")], [],
    ]  # fmt: skip
    assert reader.is_complete_call and pushed(reader, "</tool_call>\n", "Bye") == [[], [{"content": "\nBye"}]]


def test_a_reply_that_cannot_be_a_call_is_not_held_back():
    reader = parser(LLAMA)
    assert [len(reader.push(text)) for text in ("\n", "{", '"city"', ": ", '"Paris"')] == [0, 0, 0, 1, 1]
    reader = parser(LLAMA)
    assert [len(reader.push(text)) for text in ('{"name": "Paris"', ", ", '"parameters"')] == [0, 1, 0 + 1]


def test_without_parallel_calls_everything_after_the_first_is_dropped():
    for tool_format, text in (
        (HERMES, f"A {CALL}\n{EMPTY} B"),
        (LLAMA, f'{{"name": "f", "parameters": {ARGUMENTS}}}; {{"name": "g"}}'),
        (MISTRAL, f'[{{"name": "f", "arguments": {ARGUMENTS}}}, {{"name": "g"}}] B'),
    ):
        for size in (None, 1):
            message = read(text, tool_format, size, parallel=False)
            assert calls(message) == [F] and message["content"] == ("A" if tool_format is HERMES else None)


PARTS = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<think>", "</think>", "<tool", "<|python_tag|>", "[TOOL_CALLS]"),
        *'<{}[]"\\:,; \nfxé',
        *("name", "arguments", "parameters", '{"name": "f", ', '"arguments": {"a": ', '"parameters": {}'),
        *(CALL, EMPTY, '{"name": "g", "parameters": {}}', '[{"name": "g", "arguments": {}}]'),
    ]
)


@settings(max_examples=120)
@given(
    parts=st.lists(PARTS, max_size=14),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    tool_format=st.sampled_from([HERMES, LLAMA, MISTRAL, None]),
    in_reasoning=st.booleans(),
    separates=st.booleans(),
)
def test_any_split_gives_the_same_message(parts, cuts, tool_format, in_reasoning, separates):
    text = "".join(parts)
    options = {"in_reasoning": in_reasoning, "separates": separates}
    expected = read(text, tool_format, **options)
    reader, deltas, start, sizes = parser(tool_format, **options), [], 0, itertools.cycle(cuts)
    while start < len(text):
        size = next(sizes)
        deltas += reader.push(text[start : start + size])
        start += size
    deltas += reader.flush()
    assert reader.message() == expected == joined(deltas)
    if tool_format is None and not separates:
        assert expected["content"] == text
    if "tool_calls" not in expected and not separates:
        assert expected["content"] == text  # nothing is lost


@settings(max_examples=60)
@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8) | st.lists(st.integers() | st.none(), max_size=2)))
def test_any_arguments_are_read_as_they_are_written(value):
    for ascii_only, tool_format in ((True, HERMES), (False, LLAMA), (False, MISTRAL)):
        arguments = json.dumps(value, ensure_ascii=ascii_only)
        text = f'{{"name": "f", "{tool_format.arguments}": {arguments}}}'
        text = {HERMES: f"<tool_call>{text}</tool_call>", LLAMA: text, MISTRAL: f"[{text}]"}[tool_format]
        assert calls(read(text, tool_format)) == [("f", arguments)]


def longest_string(item: object) -> int:
    """The length of the longest string that an object keeps in an attribute, or an object of an attribute."""
    if isinstance(item, str):
        return len(item)
    return max(map(longest_string, vars(item).values()), default=0) if type(item).__module__.startswith("engine") else 0


@pytest.mark.parametrize("separates", [True, False])
@pytest.mark.parametrize(
    ("tool_format", "text"),
    [
        (HERMES, "\n" * 2000 + "x " * 2000),
        (None, "x " * 2000),
        (HERMES, "<think>" + "a\n" * 1000 + "</think>" + " " * 2000 + "b" * 1000),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "' + "x" * 2000),
        (HERMES, '<tool_call>{"arguments": {"a": "' + "x" * 2000 + '"}, "name": "f"}</tool_call>' + " " * 1000),
        (HERMES, "<tool_call>" + " " * 1000 + '{"' + "x" * 1000),
        (LLAMA, " " * 1000 + '{"name": "f", "parameters": {}}' + " " * 1000 + "x" * 1000),
    ],
)
def test_no_string_grows_with_the_reply_so_that_it_is_read_in_linear_time(tool_format, text, separates):
    reader = parser(tool_format, separates=separates)
    for place, character in enumerate(text):
        reader.push(character)
        if place % 100 == 0:
            assert longest_string(reader) < 40


def test_ids_are_random():
    ids = {new_call_id() for _ in range(20)}
    assert len(ids) == 20 and all(len(identifier) == 29 and identifier.startswith("call_") for identifier in ids)
