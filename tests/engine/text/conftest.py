"""Fixtures for the tests of tokenizers and chat templates."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from engine.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def load_tokenizer(shared) -> Callable[[str], Tokenizer]:
    """The tokenizers of the shared folder, each loaded once: load_tokenizer("tokenizers/gpt2")."""
    return cache(lambda name: Tokenizer.load(shared / name))


@pytest.fixture(scope="session")
def load_reference(shared) -> Callable[[str], Any]:
    """The same in transformers: load_reference("tokenizers/gpt2")."""
    from transformers import AutoTokenizer

    return cache(lambda name: AutoTokenizer.from_pretrained(shared / name))
