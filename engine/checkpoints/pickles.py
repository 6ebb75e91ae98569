"""Checkpoints that exist only as pickles (`pytorch_model.bin`): read once, without running their code, and kept as
safetensors in the user's cache, from which they are mapped like any other.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoints.safetensors import INDEX, SINGLE, some, write_tensors
from engine.runtime.errors import BareloopError
from engine.runtime.files import read_json, user_cache

PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
BLINKDL = "blocks.0.att.key.weight"  # a tensor's name in RWKV's own .pth files
CONVERTED = "RWKV/rwkv-4-169m-pile, RWKV/rwkv-4-430m-pile, RWKV/rwkv-4-1b5-pile, RWKV/rwkv-4-3b-pile"


def find_tensors(folder: Path, allow_pickle: bool = False) -> Path:
    """The folder whose safetensors hold a model's weights: its own, or the one to which its pickles were converted.

    They are converted only with `allow_pickle`, by torch's weights-only unpickler; what is converted stays.
    """
    if (folder / SINGLE).exists() or (folder / INDEX).exists():
        return folder
    files = pickles(folder)
    if not files:
        others = sorted(path.name for pattern in ("*.pth", "*.gguf", "*.safetensors") for path in folder.glob(pattern))
        found = f"; it has {some(others)}, which cannot be read" if others else ""
        raise BareloopError(
            f"{folder} has no {SINGLE} and no {INDEX}{found}; if the hub's repository has only {PICKLE}, "
            "add --allow-pickle"
        )
    place = _cache() / _key(files)
    if not place.exists():
        if not allow_pickle:
            raise BareloopError(
                f"{folder} has only {some([path.name for path in files])}, and pickles can run code when they are "
                "read; add --allow-pickle (allow_pickle=True) to read the tensors alone and keep them as safetensors"
            )
        _convert(files, place)
    return place


def pickles(folder: Path) -> list[Path]:
    """The pickles of a folder, all of them there, or none."""
    if (folder / PICKLE_INDEX).exists():
        index = read_json(folder / PICKLE_INDEX).get("weight_map")
        names = set(index.values()) if isinstance(index, dict) else set()
        if not names or not all(isinstance(name, str) and _is_plain(name) for name in names):
            raise BareloopError(f"{folder / PICKLE_INDEX} has no weight_map from tensors to files of its own folder")
        found = [folder / name for name in sorted(names)]
        return found if all(path.is_file() for path in found) else []
    return [folder / PICKLE] if (folder / PICKLE).is_file() else []


def _is_plain(name: str) -> bool:
    """Whether it names a file of the folder that it stands in."""
    return name not in ("", ".", "..") and Path(name).name == name


def _convert(files: list[Path], place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        write_tensors(_tensors(files), draft)
        draft.rename(place)
    except OSError as error:
        if not place.exists():  # else another process was faster
            raise BareloopError(f"cannot write {place}: {error.strerror}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """What the pickles hold, by name, a file at a time. Nothing in them is trusted."""
    for path in files:
        try:
            found = _unpickled(path)
            if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
                raise TypeError("it is no dictionary of tensors")
            if BLINKDL in found:
                break
            for name, tensor in found.items():
                if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
                    raise TypeError(f"{name} is no plain tensor")
                if tensor.nbytes > tensor.untyped_storage().nbytes() or tensor.device.type != "cpu":
                    raise TypeError(f"{name} claims more than there is")
        except Exception as error:  # a damaged pickle can raise anything
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise BareloopError(f"{path} is damaged, or more than tensors: {reason}") from error
        for name, tensor in found.items():
            yield name, tensor.contiguous().clone()
    else:
        return
    raise BareloopError(f"{path} is in the form of RWKV's own .pth files; a converted one is read: {CONVERTED}")


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # the form before torch 1.6


def _key(files: list[Path]) -> str:
    """A name for these very files: a hub's blob is named by its content, any other file by its place and times."""
    digest = hashlib.sha256()
    for path in files:
        real = path.resolve()
        digest.update(f"{real} {real.stat().st_size} {real.stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def _cache() -> Path:
    return user_cache("converted")
