"""Parameters to a Hugging Face folder: every rename and stacking undone."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoints.mapping import parts
from engine.checkpoints.quantized import is_quantized, to_save
from engine.checkpoints.safetensors import write_tensors
from engine.models.family import Family, Model
from engine.runtime.errors import BareloopError


def save_model(
    model: Model, family: Family, config: Mapping[str, Any], folder: Path, files: Mapping[str, bytes]
) -> None:
    """Write a Hugging Face folder: every stacking and rename undone, config.json and `files` beside.

    A quantized model is written as it is in memory (`formats.folder`), and its config declares that.
    The folder appears at once and whole, or not at all; one that is not empty is left alone.
    """
    check_new(folder)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        draft.chmod(0o755)
        named = (
            (part.name, weight if part.layout is None else part.layout.save(weight, model.config).contiguous())
            for parameter, listed in parts(model, family).items()
            for part in listed
            for weight in [model.get_parameter(parameter).detach()[part.rows]]
        )
        write_tensors(to_save(model) if is_quantized(model) else named, draft)
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, content in files.items():
            (draft / name).write_bytes(content)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def check_new(folder: Path) -> None:
    """Raise one line where a folder holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BareloopError(f"{folder} exists and is not empty; name a new folder")
