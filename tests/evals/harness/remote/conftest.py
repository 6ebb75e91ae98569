"""A model whose answers the tests' servers give."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine import LLM
from engine.checkpoints import embedded
from engine.remote import client
from tests.engine.remote.fake_server import Answer, Asked
from tests.evals.harness.remote.serving_llm import answers


@pytest.fixture(autouse=True)
def no_keys_and_no_waiting(monkeypatch):
    monkeypatch.delenv("BARELOOP_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(client, "FIRST_WAIT", 0.0)


@pytest.fixture(scope="session")
def llm() -> LLM:
    return LLM.load(embedded.NAME, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def demo(llm) -> Callable[[Asked], Answer]:
    """The answers of a server with the demo model. What is computed once is kept."""
    return answers(llm)
