"""Grammars as values, their errors, and the progress of a reply: EOS, rewinding, refused tokens."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest
import torch

from engine.decoding.grammar import MAX_SOURCE, Grammar, Matcher
from engine.runtime.errors import BareloopError, UsageError

FAST = ("gpt2", "llama-2")  # one byte-level tokenizer, and one of SentencePiece that drops the first space of a text
ORDER = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "items": {"type": "array", "items": {"enum": ["red", "日本語 🎉", 'a"b\\c\n', 7, None]}, "maxItems": 3},
    },
    "required": ["name", "items"],
    "additionalProperties": False,
}


def test_json_object_is_an_object_and_white_space_is_bounded(load, begin, walk, decode):
    tokenizer = load("gpt2")
    for seed in range(5):
        text = decode(tokenizer, walk(begin(Grammar.json_object()), tokenizer, seed), True)
        assert isinstance(json.loads(text), dict)

    def accepts(text: str) -> bool:
        matcher = begin(Grammar.json_object())
        try:
            for token in tokenizer.encode(text):
                matcher.push(token)
        except BareloopError:
            return False
        return matcher.stopped

    value = {"a": [1, {"b": []}], "c": "x  y"}
    assert accepts(json.dumps(value)) and accepts(json.dumps(value, separators=(",", ":")))
    assert accepts(json.dumps(value, indent=4)) and accepts(json.dumps(value, indent="\t"))
    assert not accepts('{"a":  1}') and not accepts('{"a":\n\n\n1}') and not accepts(' {"a":1}') and not accepts("[]")


def test_eos_is_allowed_where_the_text_may_end_and_nothing_after_it(load, begin):
    tokenizer, name = load("llama-3.2"), "llama-3.2"
    matcher = begin(Grammar.regex("ab?"), name)
    a, b = tokenizer.token_id("a"), tokenizer.token_id("b")
    for eos in matcher.eos:
        with pytest.raises(BareloopError):
            matcher.push(eos)
    matcher.push(a)
    assert not matcher.stopped
    for eos in matcher.eos:
        assert matcher.mask()[eos] and matcher.mask()[b]
        matcher.push(eos)
        assert matcher.stopped
        assert matcher.mask().nonzero()[:, 0].tolist() == matcher.eos
        with pytest.raises(BareloopError):
            matcher.push(b)
        matcher.push(eos)
        matcher.rewind(2)
    matcher.push(b)
    assert matcher.stopped and matcher.mask().nonzero()[:, 0].tolist() == matcher.eos


def test_without_eos_a_complete_text_is_stopped_and_has_no_mask(load):
    tokenizer = load("gpt2")
    matcher = Matcher(Grammar.regex("ab"), tokenizer, tokenizer.vocab_size, [])
    matcher.push(tokenizer.token_id("ab"))
    assert matcher.stopped
    with pytest.raises(BareloopError, match="no token can follow"):
        matcher.mask()


@pytest.mark.parametrize("continues", [True, False])
@pytest.mark.parametrize("name", FAST)
def test_rewind_restores_every_mask(load, begin, walk, name, continues):
    limited = 'start: x ";" y\nx[max_tokens=3]: /[a-c]*/\ny: /[0-9]{1,30}/'
    for grammar in (Grammar.json_schema(ORDER), Grammar.regex(r" {0,2}[a-z ]{8,}x?"), Grammar.lark(limited)):
        tokens = walk(begin(grammar, name, continues), load(name), seed=3)
        matcher, rng = begin(grammar, name, continues), random.Random(5)
        masks = [matcher.mask().clone()]
        for token in tokens:
            matcher.push(token)
            masks.append(matcher.mask().clone())
        matcher.push(matcher.eos[0])
        matcher.rewind(1)
        place = len(tokens)
        for _ in range(40):
            back = rng.randint(0, place)
            matcher.rewind(back)
            place -= back
            assert torch.equal(matcher.mask(), masks[place])
            for token in tokens[place : rng.randint(place, len(tokens))]:
                matcher.push(token)
                place += 1
            assert torch.equal(matcher.mask(), masks[place])
        for count in (-1, place + 1):
            with pytest.raises(BareloopError, match="cannot take back"):
                matcher.rewind(count)


@pytest.mark.parametrize("continues", [True, False])
@pytest.mark.parametrize("name", FAST)
def test_push_accepts_any_tokens_of_a_text(load, begin, walk, decode, name, continues):
    grammar = Grammar.json_schema(ORDER)
    text = decode(load(name), walk(begin(grammar, name, continues), load(name), seed=8), continues)
    matcher = begin(grammar, name, continues)
    single = {piece: token for token, piece in enumerate(matcher.vocabulary.pieces) if len(piece) == 1}
    for byte in text.encode():
        matcher.push(single[bytes([byte])])
        matcher.mask()
    assert matcher.stopped


def test_a_refused_token_changes_nothing(load, begin):
    tokenizer, matcher = load("gpt2"), begin(Grammar.regex("[a-z]{3}"))
    matcher.push(tokenizer.token_id("a"))
    mask = matcher.mask().clone()
    for token in (tokenizer.token_id("A"), matcher.eos[0], tokenizer.vocab_size, matcher.vocab_size, 10**9, -1):
        with pytest.raises(BareloopError, match=f"token {token} cannot follow"):
            matcher.push(token)
        assert torch.equal(matcher.mask(), mask)
    matcher.push(tokenizer.token_id("bc"))
    assert matcher.stopped


def test_the_mask_is_cached(begin):
    matcher = begin(Grammar.regex("[a-z]{3}"))
    assert matcher.mask() is matcher.mask()


BAD = [
    lambda: Grammar.json_schema("{"),
    lambda: Grammar.json_schema(""),
    lambda: Grammar.json_schema("[1]"),
    lambda: Grammar.json_schema({"const": {1, 2}}),
    lambda: Grammar.json_schema({"const": float("nan")}),
    lambda: Grammar.json_schema({"const": "\ud800"}),
    lambda: Grammar.json_schema({"type": "objct"}),
    lambda: Grammar.json_schema({"type": "object", "dependentSchemas": {}}),
    lambda: Grammar.json_schema({"type": "string", "pattern": "(?=a)\nb"}),
    lambda: Grammar.json_schema({"$ref": "https://localhost/schema"}),
    lambda: Grammar.json_schema({"allOf": [{"type": "string"}, {"type": "null"}]}),
    lambda: Grammar.json_schema("[" * 10**5),
    lambda: Grammar.json_schema('{"items":' * 500 + "{}" + "}" * 500),
    lambda: Grammar.regex(""),
    lambda: Grammar.regex("a("),
    lambda: Grammar.regex("a$b"),
    lambda: Grammar.regex(r"(a)\1"),
    lambda: Grammar.regex("a\n("),
    lambda: Grammar.regex("\ud800"),
    lambda: Grammar.regex("(" * 9999),
    lambda: Grammar.regex("a" * (MAX_SOURCE + 1)),
    lambda: Grammar.lark(""),
    lambda: Grammar.lark("start: foo"),
    lambda: Grammar.lark('start: "a"\n x y z'),
    lambda: Grammar.lark('rule: "a"'),
    lambda: Grammar.lark("start: " + "(" * 20_000),
    lambda: Grammar.lark('start: "a" <|im_end|>'),
    lambda: Grammar.lark('start: "a" <[151645]>'),
    lambda: Grammar.lark('{"grammars": []}'),
]


@pytest.mark.parametrize("make", BAD)
def test_a_bad_grammar_is_one_line(make):
    with pytest.raises(BareloopError) as caught:
        make()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert 10 < len(message) <= 600


def test_messages_say_what_is_wrong():
    with pytest.raises(UsageError, match=r"^the regex 'a\(' cannot be used: unclosed group$"):
        Grammar.regex("a(")
    with pytest.raises(UsageError, match=r"^the JSON schema .* cannot be used: Invalid type: objct$"):
        Grammar.json_schema({"type": "objct"})
    with pytest.raises(UsageError, match=r"^the Lark grammar .* cannot be used: at 1\(8\): unknown name: \"foo\"$"):
        Grammar.lark("start: foo")


def test_grammars_are_values():
    schema = {"type": "object", "properties": {"b": {"type": "null"}, "a": {"type": "null"}}}
    assert Grammar.json_schema(schema) == Grammar.json_schema(json.dumps(schema, indent=2))
    assert len({Grammar.json_object(), Grammar.json_object(), Grammar.regex("a"), Grammar.lark('start: "a"')}) == 3


def test_a_schema_cannot_change_the_options_of_the_compiler():
    with pytest.raises(UsageError, match="Unimplemented keys"):
        Grammar.json_schema({"x-guidance": {"lenient": True}, "dependentSchemas": {}})


@pytest.mark.parametrize("name", FAST)
def test_a_grammar_without_any_text_is_refused_before_the_first_token(begin, name):
    for grammar in (Grammar.regex(r"[^\s\S]"), Grammar.lark("start: start"), Grammar.json_schema({"$ref": "#"})):
        with pytest.raises(BareloopError, match="after 0 tokens of a reply: no token can follow"):
            begin(grammar, name, continues=False)


def test_a_grammar_that_exceeds_a_limit_is_one_line(load, begin):
    matcher = begin(Grammar.regex("((a{0,1000}){0,1000}){900}b"))
    with pytest.raises(BareloopError, match=r"after [0-9]+ tokens of a reply: lexer error: too many expressions"):
        for _ in range(60):
            matcher.mask()
            matcher.push(load("gpt2").token_id("aaaa"))
    matcher = begin(Grammar.json_schema({"type": "object", "properties": {f"p{i}": {} for i in range(1200)}}))
    with pytest.raises(BareloopError, match=r"Current row has [0-9]+ items") as caught:
        matcher.push(load("gpt2").token_id("{"))
    assert len(str(caught.value).splitlines()) == 1


def test_importing_the_module_does_not_import_llguidance():
    code = "import engine.decoding.grammar, sys; sys.exit('llguidance' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
