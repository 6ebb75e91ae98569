"""Fixtures for the tests of the demo model."""

from __future__ import annotations

import pytest
import tokenizers

from engine.demo import vocabulary


@pytest.fixture(scope="session")
def tokenizer() -> tokenizers.Tokenizer:
    """The demo's tokenizer, as the trainer builds it."""
    return vocabulary.build(0)
