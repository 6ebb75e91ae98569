"""Fixtures for the tests of the demo model."""

from __future__ import annotations

import pytest
import tokenizers

from engine.demo import vocabulary
from engine.text import chat_template


@pytest.fixture(scope="session")
def tokenizer() -> tokenizers.Tokenizer:
    """The demo's tokenizer, as the trainer builds it."""
    return vocabulary.build(0)


@pytest.fixture(autouse=True)
def long_timeouts(monkeypatch):
    """The demo's chat template must not fail on a slow machine."""
    monkeypatch.setattr(chat_template, "TIMEOUT", 600)
    monkeypatch.setattr(chat_template, "STARTUP_TIMEOUT", 600)
