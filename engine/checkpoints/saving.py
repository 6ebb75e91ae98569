"""Save a model as a Hugging Face folder: the inverse of loading."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoints.hub import OTHER_FILES
from engine.checkpoints.mapping import parameter_sources
from engine.checkpoints.quantized import declaration, is_quantized, tensors_to_save
from engine.checkpoints.safetensors import write_tensors
from engine.layers.linear import is_adapted
from engine.models.family import Family, Model
from engine.quant import GGUF
from engine.runtime.device import dtype_name
from engine.runtime.errors import BareloopError
from engine.runtime.files import draft_folder


def save_folder(model: Model, family: Family, quant: str, source: Path | None, folder: Path) -> None:
    """Write a model with the other files of the folder that it was loaded from. `quant`: its weight format.

    Raises `BareloopError` as `save_model`, and for a model in the blocks of a GGUF file.
    """
    if quant == GGUF:
        raise BareloopError("the GGUF file itself is this model; load it in another weight format to save it")
    config = {**model.config.raw, "dtype": dtype_name(model.dtype)}
    config.pop("torch_dtype", None)
    if is_quantized(model):
        config["quantization_config"] = declaration(model, quant)
    files: dict[str, bytes] = {}
    if source is not None:
        paths = (path for pattern in OTHER_FILES for path in source.glob(pattern))
        files = {path.relative_to(source).as_posix(): path.read_bytes() for path in paths}
    save_model(model, family, config, folder, files)


def save_model(
    model: Model, family: Family, config: Mapping[str, Any], folder: Path, files: Mapping[str, bytes]
) -> None:
    """Write a folder with the checkpoint's tensor names and shapes, config.json and `files`.

    A quantized model is written as it is in memory (see quantized.py), and its config declares that.
    The folder is written under a temporary name and renamed. Raises `BareloopError` if it exists and is not empty, or
    if the model has an adapter.
    """
    if is_adapted(model):
        raise BareloopError(
            f"the adapter of {model.source} is beside its weights, and would not be saved; merge it into the "
            "unquantized model: python -m engine -m MODEL --adapter ADAPTER --save FOLDER"
        )
    require_new_folder(folder)
    with draft_folder(folder.resolve()) as draft:
        named = (
            (source.name, weight if source.layout is None else source.layout.save(weight, model.config).contiguous())
            for parameter, sources in parameter_sources(model, family).items()
            for source in sources
            for weight in [model.get_parameter(parameter).detach()[source.rows]]
        )
        write_tensors(tensors_to_save(model) if is_quantized(model) else named, draft)
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, content in files.items():
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_bytes(content)


def require_new_folder(folder: Path) -> None:
    """Raise `BareloopError` if the folder exists and is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BareloopError(f"{folder} exists and is not empty; name a new folder")
