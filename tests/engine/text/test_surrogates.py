"""Texts with halves of UTF-16 pairs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.text.surrogates import without_surrogates


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("", ""),
        ("plain", "plain"),
        ("a\ud83d\ude00b", "a\N{GRINNING FACE}b"),
        ("a\ud83d", "a\ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ud83d\ude00", "\ufffd\N{GRINNING FACE}"),
    ],
)
def test_halves_are_joined_or_replaced(text, valid):
    assert without_surrogates(text) == valid


@given(st.text())
def test_valid_text_stays_as_it_is(text):
    assert without_surrogates(text) == text
