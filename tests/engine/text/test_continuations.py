"""Offsets of tokens, and texts encoded as they follow others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

TOKENIZERS = ("gpt2", "llama-2", "llama-3.2", "qwen2.5-0.5b-instruct", "gpt-neox-pythia", "phi-2")
WORDS = st.text(st.sampled_from("ab é鳥\n.:7 "), max_size=30)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_continuation_is_what_follows_in_the_whole_text(load_tokenizer, name):
    tokenizer = load_tokenizer(f"tokenizers/{name}")
    pairs = [
        ("Question: who?\nAnswer:", " the Broncos"),
        ("a" * 100, " b"),
        ("One.\n", "Two"),
        ("", "Three"),
        ("é", " 鳥"),
    ]
    for (text, more), ids in zip(pairs, tokenizer.encode_continuations(pairs), strict=True):
        whole = tokenizer.encode(text + more, add_special_tokens=False)
        assert whole == [*tokenizer.encode(text, add_special_tokens=False), *ids]


@given(WORDS, WORDS)
@pytest.mark.parametrize("name", ["gpt2", "llama-2"])
def test_a_continuation_is_its_text(load_tokenizer, name, text, more):
    tokenizer = load_tokenizer(f"tokenizers/{name}")
    (ids,) = tokenizer.encode_continuations([(text, more)])
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() in (more, f" {more}" if not text else more)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_offsets_are_the_places_of_tokens_in_the_text(load_tokenizer, name):
    tokenizer = load_tokenizer(f"tokenizers/{name}")
    text = f"Two  birds: 鳥, é.\n\n{next(iter(tokenizer.control_tokens))} end"
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert offsets == sorted(offsets) and offsets[-1][1] == len(text)
    covered = {place for start, stop in offsets for place in range(start, stop)}
    assert covered == set(range(len(text)))
    plain, _ = tokenizer.encode_with_offsets(text, is_plain=True)
    assert plain == tokenizer.encode_plain(text)
