"""Checkpoints that exist only as pickles (`pytorch_model.bin`): converted once, without running their code, to
safetensors in the user's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoints.safetensors import INDEX, SINGLE, abbreviate, write_tensors
from engine.runtime.errors import BareloopError, first_line
from engine.runtime.files import draft_folder, files_key, read_json, user_cache

PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
RWKV_ORIGINAL = "blocks.0.att.key.weight"  # a tensor name in RWKV's original .pth files
CONVERTED_RWKV = "RWKV/rwkv-4-169m-pile, RWKV/rwkv-4-430m-pile, RWKV/rwkv-4-1b5-pile, RWKV/rwkv-4-3b-pile"


def find_tensors(folder: Path, allow_pickle: bool = False) -> Path:
    """The folder with a model's safetensors: its own, or the cached conversion of its pickles.

    Pickles are converted only with `allow_pickle`, by torch's weights-only unpickler. A conversion is kept.
    Raises `BareloopError` if there are no weights, or only pickles without permission.
    """
    if (folder / SINGLE).exists() or (folder / INDEX).exists():
        return folder
    files = pickles(folder)
    if not files:
        others = sorted(path.name for pattern in ("*.pth", "*.gguf", "*.safetensors") for path in folder.glob(pattern))
        other_files = f"; it has {abbreviate(others)}, which cannot be read" if others else ""
        raise BareloopError(
            f"{folder} has no {SINGLE} and no {INDEX}{other_files}; if the hub's repository has only {PICKLE}, "
            "add --allow-pickle"
        )
    converted = _cache() / files_key(files)
    if not converted.exists():
        if not allow_pickle:
            raise BareloopError(
                f"{folder} has only {abbreviate([path.name for path in files])}, and unpickling can run code; "
                "add --allow-pickle (allow_pickle=True) to read only the tensors, and keep them as safetensors"
            )
        _convert(files, converted)
    return converted


def pickles(folder: Path) -> list[Path]:
    """The pickles of a folder; empty if any is missing."""
    if (folder / PICKLE_INDEX).exists():
        index = read_json(folder / PICKLE_INDEX).get("weight_map")
        names = set(index.values()) if isinstance(index, dict) else set()
        if not names or not all(isinstance(name, str) and _is_plain(name) for name in names):
            raise BareloopError(f"{folder / PICKLE_INDEX} has no weight_map from tensors to files in the same folder")
        paths = [folder / name for name in sorted(names)]
        return paths if all(path.is_file() for path in paths) else []
    return [folder / PICKLE] if (folder / PICKLE).is_file() else []


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in the same folder."""
    return name not in ("", ".", "..") and Path(name).name == name


def _convert(files: list[Path], folder: Path) -> None:
    try:
        with draft_folder(folder) as draft:
            write_tensors(_tensors(files), draft)
    except OSError as error:
        if not folder.exists():  # otherwise another process was faster
            raise BareloopError(f"cannot write {folder}: {error.strerror}") from error


def _tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the pickles by name, one file at a time. The content is not trusted."""
    for path in files:
        try:
            content = _unpickle(path)
            if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
                raise TypeError("not a dictionary of tensors")
            if RWKV_ORIGINAL in content:
                break
            for name, tensor in content.items():
                if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
                    raise TypeError(f"{name} is not a dense tensor")
                if tensor.nbytes > tensor.untyped_storage().nbytes() or tensor.device.type != "cpu":
                    raise TypeError(f"{name} is larger than its storage")
        except Exception as error:  # a damaged pickle can raise anything
            reason = first_line(error)
            raise BareloopError(f"{path} is damaged, or has more than tensors: {reason}") from error
        for name, tensor in content.items():
            yield name, tensor.contiguous().clone()
    else:
        return
    raise BareloopError(
        f"{path} has the format of RWKV's original .pth files; use a converted repository: {CONVERTED_RWKV}"
    )


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6


def _cache() -> Path:
    return user_cache("converted")
