"""Replies that must be calls: what real tokenizers may write, and what models do write."""

from __future__ import annotations

import json

import pytest

from engine import LLM, SamplingParams
from engine.decoding.grammar import Grammar, Matcher
from engine.serve.conversation.replies import ReplyParser
from engine.serve.conversation.tool_grammar import grammar, reply_grammar, response_grammar
from engine.serve.conversation.tools import GENERIC, HERMES, LLAMA, MISTRAL, ToolFormat, check
from engine.serve.protocol.errors import ApiError
from engine.serve.protocol.fields import read_fields
from engine.serve.protocol.requests import ChatRequest

# The first has <tool_call> as one token, the second does not, and is quickly prepared for grammars.
EOS = {"qwen2.5-0.5b-instruct": ["<|im_end|>", "<|endoftext|>"], "gpt2": ["<|endoftext|>"]}
QWEN, GPT_2 = EOS
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "description": 'see http://x // "y"\n',
                "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"$ref": "#/$defs/days"}},
                "required": ["city"],
                "additionalProperties": False,
                "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
            },
        },
    },
    {"type": "function", "function": {"name": "get.time"}},
]
NAMED = {"type": "function", "function": {"name": "get.time"}}
WEATHER, TIME = ("get_weather", '{"city": "Paris", "days": 3}'), ("get.time", '{"any": [1, null]}')


def written(tool_format: ToolFormat, *calls: tuple[str, str]) -> str:
    """A reply of nothing but calls."""
    objects = [f'{{"name": "{name}", "{tool_format.arguments}": {arguments}}}' for name, arguments in calls]
    if tool_format.anywhere:
        return "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in objects)
    return "[" + ", ".join(objects) + "]" if tool_format is MISTRAL else "; ".join(objects)


@pytest.fixture(scope="module")
def accepts(load_tokenizer):
    """Whether a tokenizer's own tokens of a text match a grammar and may end there: accepts(grammar, text, name)."""

    def run(rules: Grammar, text: str, name: str = QWEN) -> bool:
        tokenizer = load_tokenizer(f"tokenizers/{name}")
        matcher = Matcher(rules, tokenizer, tokenizer.vocab_size, [tokenizer.token_id(token) for token in EOS[name]])
        for token in tokenizer.encode(text, add_special_tokens=False):
            if not matcher.mask()[token]:
                return False
            matcher.push(token)
        return bool(matcher.mask()[matcher.eos].all())

    return run


@pytest.mark.parametrize(("tool_format", "name"), [(HERMES, QWEN), (GENERIC, GPT_2), (LLAMA, GPT_2), (MISTRAL, QWEN)])
def test_a_required_reply_is_calls_of_the_tools(accepts, tool_format, name):
    rules = grammar(tool_format, check(TOOLS, "required"))
    for calls in ((WEATHER,), (TIME,), (WEATHER, TIME, WEATHER)):
        assert accepts(rules, written(tool_format, *calls), name) == (len(calls) == 1 or tool_format is not LLAMA)
    good = written(tool_format, WEATHER)
    for bad in (
        "",
        "Well. " + good,
        good + "\n",
        good[:-1],
        written(tool_format, ("get_time", "{}")),
        written(tool_format, ("get_weather", '{"city": "Paris", "days": 10}')),
        written(tool_format, ("get_weather", "{}")),
        written(tool_format, ("get.time", "[]")),
        written(tool_format, ("get.time", '{"a":  1}')),
    ):
        assert not accepts(rules, bad, name), bad


def test_a_named_tool_is_called_exactly_once(accepts):
    rules = grammar(HERMES, check(TOOLS, NAMED))
    assert accepts(rules, written(HERMES, TIME))
    assert not accepts(rules, written(HERMES, WEATHER)) and not accepts(rules, written(HERMES, TIME, TIME))


def test_without_parallel_calls_there_is_one(accepts):
    for tool_format in (HERMES, MISTRAL):
        rules = grammar(tool_format, check(TOOLS, "required", parallel=False))
        assert accepts(rules, written(tool_format, WEATHER))
        assert not accepts(rules, written(tool_format, WEATHER, TIME))


def test_reasoning_that_the_prompt_has_begun_comes_first(accepts):
    calls = grammar(HERMES, check(TOOLS, "required"), in_reasoning=True)
    answer = response_grammar(as_read({"type": "json_object"}), in_reasoning=True)
    for rules, text in ((calls, written(HERMES, WEATHER)), (answer, '{"a": 1}')):
        assert accepts(rules, f"Hm, <b>\n\n{{…</think>\n\n{text}") and accepts(rules, f"</think>{text}")
        assert not accepts(rules, text) and not accepts(rules, f"Hm</think>\n\nSo: {text}")


def test_none_and_auto_need_no_grammar():
    for tools, choice in ((None, None), (TOOLS, None), (TOOLS, "auto"), (TOOLS, "none")):
        assert grammar(HERMES, check(tools, choice)) is None
        assert reply_grammar(HERMES, check(tools, choice), as_read({"type": "text"})) is None


@pytest.mark.parametrize(
    "parameters", [{"properties": 3}, {"properties": {"a": {"pattern": "(?=x)"}}}, {"$ref": "x:y"}]
)
def test_parameters_that_are_no_schema_are_refused_with_their_place(parameters):
    tools = [TOOLS[1], {"type": "function", "function": {"name": "f", "parameters": parameters}}]
    with pytest.raises(ApiError) as caught:
        grammar(HERMES, check(tools, "required"))
    assert (caught.value.status, caught.value.param) == (400, "tools[1].function.parameters")
    assert grammar(HERMES, check(tools, NAMED)) is not None  # only what is used is compiled


def as_read(response_format):
    """A response format as requests have it."""
    return read_fields(
        ChatRequest, {"messages": [{"role": "user"}], "response_format": response_format}
    ).response_format


@pytest.mark.parametrize(
    ("response_format", "expected"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, Grammar.json_schema({"type": "object"})),
        ({"type": "json_object", "schema": {"const": 3}}, Grammar.json_schema({"const": 3})),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": True}}, Grammar.json_schema({})),
        ({"type": "json_schema", "json_schema": {"schema": {"const": 3}}}, Grammar.json_schema({"const": 3})),
    ],
)
def test_response_formats(response_format, expected):
    form = as_read(response_format)
    assert response_grammar(form) == expected
    assert reply_grammar(HERMES, check(TOOLS, "none"), form) == expected


def test_the_short_form_of_a_schema_gives_the_same_grammar_and_its_errors_name_it():
    read = [ChatRequest, {"messages": [{"role": "user"}], "json_schema": {"const": 3}}]
    assert response_grammar(read_fields(*read).wanted_format) == Grammar.json_schema({"const": 3})
    read[1]["json_schema"] = {"type": "hiccup"}
    with pytest.raises(ApiError) as caught:
        response_grammar(read_fields(*read).wanted_format)
    assert caught.value.param == "json_schema"


SCHEMA = "response_format.json_schema.schema"


@pytest.mark.parametrize(
    ("response_format", "param"),
    [
        ({"type": "json_object", "schema": {"type": 123}}, "response_format.schema"),
        ({"type": "json_object", "schema": {"type": "hiccup"}}, "response_format.schema"),
        ({"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}, SCHEMA),
        ({"type": "json_schema", "json_schema": {"schema": {"title": "\ud83d"}}}, f"{SCHEMA}.title"),
    ],
)
def test_response_formats_that_are_refused_name_their_place(response_format, param):
    for in_reasoning in (False, True):
        with pytest.raises(ApiError) as caught:
            response_grammar(as_read(response_format), in_reasoning)
        assert (caught.value.status, caught.value.param) == (400, param)


def test_a_reply_cannot_be_both_json_and_a_call():
    for choice in ("auto", "required", NAMED):
        with pytest.raises(ApiError, match="exclude each other") as caught:
            reply_grammar(HERMES, check(TOOLS, choice), as_read({"type": "json_object"}))
        assert caught.value.param == "response_format"


def test_a_grammar_that_is_too_long_is_refused():
    many = [
        {"type": "function", "function": {"name": f"f{index}", "parameters": {"description": "x" * 50_000}}}
        for index in range(3)
    ]
    with pytest.raises(ApiError, match="characters") as caught:
        grammar(HERMES, check(many, "required"))
    assert caught.value.param == "tools"


@pytest.mark.parametrize("tool_format", [GENERIC, LLAMA, MISTRAL])
def test_what_a_model_writes_within_the_grammar_is_read_as_calls(demo, tool_format):
    choice = check(TOOLS, "required", parallel=False)
    params = SamplingParams(max_new_tokens=150, grammar=grammar(tool_format, choice), temperature=0.8, seed=1)
    (reply,) = demo.generate(["The weather in Paris?"], params)
    assert reply.finish_reason == "stop"
    parser = ReplyParser(tool_format, names=choice.names)
    parser.push(reply.text)
    parser.flush()
    (call,) = parser.message()["tool_calls"]
    assert call["function"]["name"] in choice.names and isinstance(json.loads(call["function"]["arguments"]), dict)
    assert parser.message()["content"] is None


@pytest.fixture(scope="module")
def demo() -> LLM:
    return LLM.load("demo", device="cpu")
