"""Checkpoints of the smallest shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import shapes


@pytest.fixture(scope="session")
def written_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints for all tests, which only read them."""
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture
def tiny_shape(written_shapes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the smallest shape, in a cache of the tests."""
    monkeypatch.setattr(shapes, "cache_folder", lambda: written_shapes)
    return shapes.checkpoint("tiny")
