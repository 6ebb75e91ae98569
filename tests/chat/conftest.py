"""Fixtures of the chat tests."""

from __future__ import annotations

import pytest

from chat.agent import Agent
from chat.conversation.events import Settings
from chat.models.local import LocalModel


@pytest.fixture
def agent(shared, tmp_path, monkeypatch) -> Agent:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = str(shared / "checkpoints" / "llama-tinystories-656k")
    return Agent(LocalModel.load, folder, Settings(sampling={"max_new_tokens": 6}))
