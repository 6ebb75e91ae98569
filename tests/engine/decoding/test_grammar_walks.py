"""Random walks through grammars: whatever tokens are chosen from the masks, the text is one of the grammar."""

from __future__ import annotations

import json
import re

import pytest

from engine.decoding.grammar import Grammar

NAMES = (
    "gpt2",
    "gpt-neox-pythia",
    "phi-2",
    "llama-3.2",
    "qwen2.5-0.5b-instruct",
    "llama-2",
    "mistral-7b-instruct-v0.2",
)
FAST = ("gpt2", "llama-2")  # one byte-level tokenizer, and one of SentencePiece that drops the first space of a text

CONTROL_TEXTS = ["<|im_end|>", "</s>", "<|endoftext|>", "<tool_call>", "<0x41>", "<unk>"]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["red", "日本語 🎉", 'a"b\\c\n', 7, None]}, "maxItems": 3},
        "address": {
            "type": "object",
            "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}, "<|im_end|>": {"type": "boolean"}},
            "required": ["zip", "<|im_end|>"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
}
SCHEMAS = [
    PERSON,
    {"type": "object"},
    {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 5},
    {"type": "array", "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, "maxItems": 3},
    {"type": "string", "minLength": 3, "maxLength": 40},
    {"enum": CONTROL_TEXTS},
    {"const": {"é": ["</s> <|im_end|>", "\u2028 🎉"]}},
    {"anyOf": [{"type": "integer", "minimum": -5, "maximum": 5}, {"type": "null"}]},
]
REGEXES = [
    r"[A-Z][a-z]{1,9} [0-9]{2,4}(, [a-zé]{1,5}){0,3}",
    r"( yes| no|maybe )",
    r" {0,3}x",
    r"(日本|русский|🎉){2,4}",
    r"(<\|im_end\|>|</s>|<s>)!",
    r"(a|)",
]
LARK = """start: expression
expression: expression "+" term | term
term: NUMBER | "(" expression ")"
NUMBER: /[0-9]{1,3}/
"""


def conforms(value, schema) -> bool:
    """Whether a value is of a schema, for the keywords that are used here."""
    if "anyOf" in schema:
        return any(conforms(value, option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return value in schema.get("enum", [schema.get("const")])
    match schema["type"]:
        case "object":
            known = schema.get("properties", {})
            return (
                isinstance(value, dict)
                and set(schema.get("required", ())) <= set(value)
                and (schema.get("additionalProperties", True) or set(value) <= set(known))
                and all(conforms(value[key], known[key]) for key in value if key in known)
            )
        case "array":
            items, bounds = schema["items"], (schema.get("minItems", 0), schema.get("maxItems", 1000))
            return (
                isinstance(value, list)
                and bounds[0] <= len(value) <= bounds[1]
                and all(conforms(item, items) for item in value)
            )
        case "string":
            bounds = (schema.get("minLength", 0), schema.get("maxLength", 10**6))
            return (
                isinstance(value, str)
                and bounds[0] <= len(value) <= bounds[1]
                and re.search(schema.get("pattern", ""), value) is not None
            )
        case "integer":
            return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
        case other:
            return isinstance(value, {"number": (int, float), "boolean": bool, "null": type(None)}[other])


@pytest.mark.parametrize("continues", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_walks_under_a_schema_give_json_of_the_schema(load, begin, walk, decode, name, continues):
    for index, schema in enumerate(SCHEMAS):
        grammar = Grammar.json_schema(schema)
        for seed in range(3 if name in FAST else 2):
            tokens = walk(begin(grammar, name, continues), load(name), seed=100 * index + seed)
            text = decode(load(name), tokens, continues)
            assert conforms(json.loads(text), schema), text


@pytest.mark.parametrize("continues", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_walks_under_a_regex_match_it_as_a_whole(load, begin, walk, decode, name, continues):
    for pattern in REGEXES:
        for seed in range(8 if name in FAST else 3):
            tokens = walk(begin(Grammar.regex(pattern), name, continues), load(name), seed)
            assert re.fullmatch(pattern, decode(load(name), tokens, continues))


@pytest.mark.parametrize("name", NAMES)
def test_walks_under_a_lark_grammar_are_its_sentences(load, begin, walk, decode, name):
    for seed in range(4):
        text = decode(load(name), walk(begin(Grammar.lark(LARK), name), load(name), seed), True)
        assert re.fullmatch(r"[0-9+()]+", text)
        assert eval(re.sub(r"\b0+(?=\d)", "", text)) >= 0


@pytest.mark.parametrize("name", NAMES)
def test_text_without_alternatives_is_tokenized_as_the_tokenizer_does(load, begin, name):
    text, tokenizer = 'The quick "brown": <|im_end|> Füchse, 日本語\n\n    return 12345 <tool_call>', load(name)
    matcher = begin(Grammar.regex(re.escape(text).replace(r"\ ", " ")), name, continues=False)
    expected = tokenizer.encode_plain(text)
    for place, token in enumerate(expected):
        mask = matcher.mask()
        assert mask[token]
        assert mask.sum() == 1 or place == 0 or len(expected) - place < 3  # a first space is optional
        matcher.push(token)
    assert matcher.stopped
