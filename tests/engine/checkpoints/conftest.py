"""Fixtures for the tests of checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def edit_tensors(tmp_path: Path) -> Callable[[Path, Callable[[dict[str, torch.Tensor]], object]], Path]:
    """Copy a model folder and change its tensors: edit_tensors(folder, change) -> the new folder."""

    def edit(source: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
        folder = tmp_path / "edited"
        folder.mkdir()
        (folder / "config.json").write_bytes((source / "config.json").read_bytes())
        tensors = load_file(source / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        return folder

    return edit
