"""Masks against the bytes of every token, and tokenizers of all kinds."""

from __future__ import annotations

import gc
import json
import re
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import tokenizers
import torch

from engine.decoding.grammar import Grammar, Matcher
from engine.decoding.grammar_tokens import Vocabulary
from engine.runtime.errors import BareloopError
from engine.text.tokenizer import Tokenizer

FAST = ("gpt2", "llama-2")  # one byte-level tokenizer, and one of SentencePiece that drops the first space of a text


@pytest.mark.parametrize("continues", [True, False])
@pytest.mark.parametrize("name", FAST)
def test_a_mask_has_exactly_the_tokens_that_fit(load, begin, name, continues):
    """All tokens of the vocabulary, against Python's `re`."""
    tokenizer = load(name)
    matcher = begin(Grammar.regex("[a-c ]{1,4}"), name, continues)
    sentencepiece = name == "llama-2"
    pieces = {token: piece for piece, token in tokenizer.backend.get_vocab().items() if token not in matcher.eos}
    space = "▁" if sentencepiece else "Ġ"
    texts = {token: piece.replace(space, " ") for token, piece in pieces.items()}
    if sentencepiece:
        texts |= {token: chr(int(text[3:5], 16)) for token, text in texts.items() if re.fullmatch("<0x[2-6].>", text)}

    def fits(text: str, room: int) -> bool:
        return re.fullmatch(f"[a-c ]{{1,{room}}}", text) is not None

    first = {token for token, text in texts.items() if fits(text, 4)}
    if sentencepiece and not continues:  # the first space is dropped
        first = {token for token, text in texts.items() if text == " " or fits(text.removeprefix(" "), 4)}
    assert set(matcher.mask().nonzero()[:, 0].tolist()) == first
    matcher.push(tokenizer.token_id("ab"))
    expected = {token for token, text in texts.items() if fits(text, 2)} | set(matcher.eos)
    assert set(matcher.mask().nonzero()[:, 0].tolist()) == expected


def test_an_ordinary_token_that_is_eos_is_no_text(load):
    tokenizer = load("gpt2")
    comma = tokenizer.token_id(",")
    matcher = Matcher(Grammar.regex("a, b"), tokenizer, tokenizer.vocab_size, [comma, 10**6, -1])
    matcher.push(tokenizer.token_id("a"))
    with pytest.raises(BareloopError, match="no token can follow"):
        matcher.mask()
    matcher = Matcher(Grammar.regex("a[,b]?"), tokenizer, tokenizer.vocab_size, [comma])
    matcher.push(tokenizer.token_id("a"))
    assert matcher.mask().nonzero()[:, 0].tolist() == sorted([comma, tokenizer.token_id("b")])


def test_a_model_with_fewer_tokens_than_the_tokenizer(load):
    tokenizer = load("gpt2")
    matcher = Matcher(Grammar.regex("[a-z]+"), tokenizer, 300, [0])
    assert len(matcher.mask()) == 300
    assert matcher.mask()[tokenizer.token_id("a")]
    with pytest.raises(BareloopError):
        matcher.push(tokenizer.token_id("hello"))


def test_text_that_the_vocabulary_lacks_is_refused(shared, load):
    tokenizer = Tokenizer.load(shared / "checkpoints" / "llama-tinystories-656k")
    with pytest.raises(BareloopError, match="no token can follow"):
        Matcher(Grammar.json_object(), tokenizer, tokenizer.vocab_size, [0])  # it has no {


def test_tokenizers_that_put_a_space_before_a_text(load, walk):
    settings = json.loads(load("gpt2").backend.to_str())
    settings["pre_tokenizer"]["add_prefix_space"] = True
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(settings)), {})
    eos = tokenizer.token_id("<|endoftext|>")
    tokens = walk(Matcher(Grammar.regex("hello world!"), tokenizer, tokenizer.vocab_size, [eos]), tokenizer, seed=0)
    assert [tokenizer.backend.id_to_token(token) for token in tokens] == ["hello", "Ġworld", "!"]


def test_other_kinds_of_tokenizers_are_refused():
    tokenizer = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, "a")), {})
    with pytest.raises(BareloopError, match="byte-level or SentencePiece"):
        Matcher(Grammar.regex("a"), tokenizer, 2, [1])


def test_a_vocabulary_is_made_once_and_goes_with_its_tokenizer(shared, load):
    tokenizer = Tokenizer.load(shared / "tokenizers" / "llama-2")
    first = Vocabulary.cached(tokenizer, 32_000, frozenset([2]))
    assert Vocabulary.cached(tokenizer, 32_000, frozenset([2])) is first
    assert Vocabulary.cached(tokenizer, 32_064, frozenset([2])) is not first
    freed = weakref.ref(first)
    del tokenizer, first
    gc.collect()
    assert freed() is None


def test_threads_that_begin_at_once_create_one_vocabulary(shared, monkeypatch):
    tokenizer, barrier, created = Tokenizer.load(shared / "tokenizers" / "llama-2"), Barrier(4), []
    create = Vocabulary.__init__
    monkeypatch.setattr(Vocabulary, "__init__", lambda self, *args: (created.append(self), create(self, *args))[1])

    def matcher(_: int) -> Matcher:
        barrier.wait()
        return Matcher(Grammar.regex("[ab]+"), tokenizer, tokenizer.vocab_size, [2])

    with ThreadPoolExecutor(4) as pool:
        matchers = [*pool.map(matcher, range(4))]
    assert [each.vocabulary for each in matchers] == created * 4
    assert all(torch.equal(each.mask(), matchers[0].mask()) for each in matchers)
