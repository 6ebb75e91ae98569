"""Models that the tests of conversations share."""

from __future__ import annotations

import pytest

from engine import LLM
from tests.chat.memory.conftest import bag, open_store, path

__all__ = ["bag", "open_store", "path"]  # fixtures


@pytest.fixture(scope="module")
def llm(shared) -> LLM:
    """A tiny base model, so that the conversation is a plain script."""
    return LLM.load(shared / "checkpoints" / "llama-tinystories-656k", dtype="float32")


@pytest.fixture(scope="module")
def demo() -> LLM:
    """The embedded demo model, which answers questions."""
    return LLM.load("demo", dtype="float32")
