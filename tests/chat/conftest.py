"""Fixtures of the chat tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from chat.agent import Agent
from chat.conversation.events import Settings
from chat.models.local import LocalModel
from tests.engine.models.vision.tiny import picture, tiny_checkpoint


@pytest.fixture
def agent(shared, tmp_path, monkeypatch) -> Agent:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = str(shared / "checkpoints" / "llama-tinystories-656k")
    return Agent(LocalModel.load, folder, Settings(sampling={"max_new_tokens": 6}))


@pytest.fixture(scope="session")
def vlm(tmp_path_factory) -> Path:
    """The folder of a random tiny vision-language model."""
    return tiny_checkpoint(tmp_path_factory.mktemp("vlm")).folder


@pytest.fixture
def vision_agent(vlm, tmp_path, monkeypatch) -> Agent:
    """An agent of that model, whose greedy replies are short."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings(sampling={"max_new_tokens": 6, "temperature": 0.0})
    return Agent(lambda name: LocalModel.load(name, dtype="float32"), str(vlm), settings)


@pytest.fixture
def cat(tmp_path) -> Path:
    """The file of a picture of 60 x 40 pixels."""
    path = tmp_path / "my cat.png"
    path.write_bytes(picture(60, 40))
    return path
