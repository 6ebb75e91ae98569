"""Fixtures for the tests of GGUF files."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for the folders that describe GGUF files."""
    monkeypatch.setattr("engine.checkpoints.gguf.source.user_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "gguf"
