"""Streaming text: equal to the whole decode, whatever the ids; stop strings never leak."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text.detokenizer import StopStrings
from engine.text.tokenizer import Tokenizer

FOLDERS = (
    *(
        "tokenizers/" + name
        for name in ("qwen2.5-0.5b-instruct", "llama-3.2", "olmo-2", "gpt2", "phi-2", "gpt-neox-pythia")
    ),
    *("tokenizers/llama-2", "tokenizers/mistral-7b-instruct-v0.2"),
    *("checkpoints/llama-tinystories-656k", "checkpoints/gpt2-capp-235k"),
)
TEXTS = [
    "naïve café — 你好 👋🏽 👨‍👩‍👧",
    "  two  spaces\n\n\tx",
    "مرحبا עולם",
    "def f(x):\n    return x",
    "\ufffd and � stay",
]


@cache
def load(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


def stream(tokenizer: Tokenizer, ids: list[int], continues: bool = False) -> str:
    detokenizer = tokenizer.detokenizer(continues)
    return "".join([*map(detokenizer.push, ids), detokenizer.flush()])


@pytest.mark.parametrize("name", FOLDERS)
def test_pieces_are_the_whole_decode_on_random_ids(shared, name):
    tokenizer = load(shared / name)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.integers(0, tokenizer.vocab_size + 5), max_size=30))
    def check(ids: list[int]) -> None:
        assert stream(tokenizer, ids) == tokenizer.decode(ids)

    check()


@pytest.mark.parametrize("name", FOLDERS[:9])
def test_pieces_are_the_whole_decode_on_real_text(shared, name):
    tokenizer = load(shared / name)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert stream(tokenizer, ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["tokenizers/llama-2", "tokenizers/mistral-7b-instruct-v0.2"])
def test_runs_of_bytes(shared, name):
    tokenizer = load(shared / name)
    byte = {value: tokenizer.token_id(f"<0x{value:02X}>") for value in range(256)}

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.one_of(st.sampled_from(sorted(byte)).map(byte.get), st.integers(259, 31_000)), max_size=12))
    def check(ids: list[int]) -> None:
        assert stream(tokenizer, ids) == tokenizer.decode(ids)

    check()


def test_a_text_that_continues_another_keeps_its_first_space(shared):
    tokenizer = load(shared / "tokenizers" / "llama-2")
    ids = tokenizer.encode("hello there", add_special_tokens=False)
    assert stream(tokenizer, ids) == "hello there"
    assert stream(tokenizer, ids[1:], continues=True) == " there"


def test_a_character_appears_once_it_is_whole(shared):
    tokenizer = load(shared / "tokenizers" / "gpt2")
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.push(number) for number in tokenizer.encode("👋!")]
    assert pieces[-2:] == ["👋", "!"]
    assert set(pieces[:-2]) == {""}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("abc", max_size=3), max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_at_the_first_and_nothing_of_them_leaks(pieces, stops):
    finder, emitted = StopStrings(stops), ""
    whole = "".join(pieces)
    for piece in pieces:
        emitted += finder.push(piece)
        assert whole.startswith(emitted)
        if finder.found:
            break
    if finder.found is None:
        emitted += finder.flush()
        assert emitted == whole
        assert not any(stop in whole for stop in stops)
    else:
        assert not any(stop in emitted for stop in stops)
        assert whole.startswith(emitted + finder.found)
