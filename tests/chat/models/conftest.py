"""Fixtures of the tests with servers."""

from __future__ import annotations

import pytest

from engine.remote import client


@pytest.fixture(autouse=True)
def no_keys_and_no_waiting(monkeypatch):
    """No key of the environment is sent, and a request that fails is repeated at once."""
    monkeypatch.delenv("BARELOOP_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(client, "FIRST_WAIT", 0.0)
