"""Streamed text equals the text of all ids decoded at once, and no part of a stop string is emitted."""

from __future__ import annotations

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


def stream(tokenizer: Tokenizer, ids: list[int], continues: bool = False) -> str:
    """The pieces of the detokenizer, joined."""
    detokenizer = tokenizer.detokenizer(continues)
    return "".join([*map(detokenizer.push, ids), detokenizer.flush()])


@pytest.mark.parametrize("name", FOLDERS)
def test_streamed_text_equals_decoded_text_for_random_ids(load_tokenizer, name):
    tokenizer = load_tokenizer(name)

    @settings(max_examples=150)
    @given(st.lists(st.integers(0, tokenizer.vocab_size + 5), max_size=30))
    def check(ids: list[int]) -> None:
        assert stream(tokenizer, ids) == tokenizer.decode(ids)

    check()


@pytest.mark.parametrize("name", FOLDERS[:9])
def test_streamed_text_equals_decoded_text_for_real_text(load_tokenizer, name):
    tokenizer = load_tokenizer(name)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert stream(tokenizer, ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["tokenizers/llama-2", "tokenizers/mistral-7b-instruct-v0.2"])
def test_streamed_text_equals_decoded_text_for_byte_tokens(load_tokenizer, name):
    tokenizer = load_tokenizer(name)
    byte_tokens = {value: tokenizer.token_id(f"<0x{value:02X}>") for value in range(256)}

    @settings(max_examples=150)
    @given(
        st.lists(
            st.one_of(st.sampled_from(sorted(byte_tokens)).map(byte_tokens.get), st.integers(259, 31_000)), max_size=12
        )
    )
    def check(ids: list[int]) -> None:
        assert stream(tokenizer, ids) == tokenizer.decode(ids)

    check()


def test_a_text_that_continues_another_keeps_its_first_space(load_tokenizer):
    tokenizer = load_tokenizer("tokenizers/llama-2")
    ids = tokenizer.encode("hello there", add_special_tokens=False)
    assert stream(tokenizer, ids) == "hello there"
    assert stream(tokenizer, ids[1:], continues=True) == " there"


def test_a_character_is_emitted_with_its_last_token(load_tokenizer):
    tokenizer = load_tokenizer("tokenizers/gpt2")
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.push(number) for number in tokenizer.encode("👋!")]
    assert pieces[-2:] == ["👋", "!"]
    assert set(pieces[:-2]) == {""}


@settings(max_examples=300)
@given(st.lists(st.text("abc", max_size=3), max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string(pieces, stops):
    stop_strings, emitted = StopStrings(stops), ""
    whole = "".join(pieces)
    for piece in pieces:
        emitted += stop_strings.push(piece)
        assert whole.startswith(emitted)
        if stop_strings.found:
            break
    if stop_strings.found is None:
        emitted += stop_strings.flush()
        assert emitted == whole
        assert not any(stop in whole for stop in stops)
    else:
        assert not any(stop in emitted for stop in stops)
        assert whole.startswith(emitted + stop_strings.found)
