"""Find a GGUF model by its name, and describe it as a Hugging Face folder.

The folder is in the user's cache. It has config.json and the tokenizer's files, made from the GGUF file's metadata, and
gguf.json with the paths of the files. The weights stay in these.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoints.gguf.reader import GGUFFile, is_gguf
from engine.runtime.errors import BareloopError
from engine.runtime.files import draft_folder, files_key, read_json, user_cache

if TYPE_CHECKING:
    from engine.checkpoints.tensor_file import Stored

POINTER = "gguf.json"
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
OLLAMA = "ollama:"  # prefix of a model's name in Ollama
MEDIA_TYPE = "application/vnd.ollama.image"
OLLAMA_SERVICE = Path("/usr/share/ollama/.ollama/models")  # where its Linux service keeps models
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that a path names: itself, or the only model in a folder; None if there is none.

    A folder with a config.json and other weights is a Hugging Face model. Of a model in shards any shard is returned.

    Raises `BareloopError` if a folder has several.
    """
    if path.is_file():
        return path if is_gguf(path) else None
    if not path.is_dir() or (
        (path / "config.json").exists() and any(file for pattern in WEIGHTS for file in path.glob(pattern))
    ):
        return None
    files = [file for file in sorted(path.glob("*.gguf")) if "mmproj" not in file.name]  # a projector for images
    models = {match[1] if (match := SHARD.fullmatch(file.name)) else file.name: file for file in reversed(files)}
    if len(models) > 1:
        names = ", ".join(file.name for file in list(models.values())[:-6:-1])
        raise BareloopError(f"{path} has {len(models)} GGUF models; name one of them: {names}")
    return next(iter(models.values()), None)


def find_ollama(name: str) -> Path:
    """The GGUF file of a model that Ollama has downloaded, such as ollama:llama3.2:1b.

    Ollama's folder is $OLLAMA_MODELS, or ~/.ollama/models, or that of its Linux service.
    Raises `BareloopError` if it has no such model.
    """
    model, _, tag = name.removeprefix(OLLAMA).partition(":")
    parts = model.split("/")
    if not model or any(part in ("", ".", "..") for part in (*parts, tag or "latest")) or len(parts) > 3:
        raise BareloopError(f"{name} is not a name in Ollama; for example: ollama:llama3.2:1b")
    defaults = ["registry.ollama.ai", "library"]
    chosen = os.environ.get("OLLAMA_MODELS")
    roots = [Path(chosen)] if chosen else [Path.home() / ".ollama" / "models", OLLAMA_SERVICE]
    place = Path("manifests", *defaults[: 3 - len(parts)], *parts, tag or "latest")
    root = next((root for root in roots if (root / place).is_file()), roots[0])
    manifest = root / place
    if not manifest.is_file():
        raise BareloopError(f"Ollama has no model {name.removeprefix(OLLAMA)} in {root}; run: ollama pull {model}")
    layers = read_json(manifest).get("layers")
    digests = {layer.get("mediaType"): layer.get("digest") for layer in layers or () if isinstance(layer, dict)}
    if f"{MEDIA_TYPE}.adapter" in digests:
        raise BareloopError(f"{name} is a model with an adapter, which is not implemented; name its base model")
    blob = root / "blobs" / str(digests.get(f"{MEDIA_TYPE}.model")).replace(":", "-")
    if blob.parent == root / "blobs" and is_gguf(blob):
        return blob
    raise BareloopError(f"{manifest} names no GGUF file that exists; run: ollama pull {model}")


def shards(path: Path) -> list[Path]:
    """All files of a model that may be split: model-00001-of-00003.gguf. Raises `BareloopError` if some are missing."""
    match = SHARD.fullmatch(path.name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return [path]
    paths = [path.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf") for number in range(1, int(match[3]) + 1)]
    missing = [shard.name for shard in paths if not shard.is_file()]
    if missing:
        raise BareloopError(
            f"{len(missing)} of {len(paths)} shards are missing beside {path}: {', '.join(missing[:5])}"
        )
    return paths


def as_folder(path: Path) -> Path:
    """The Hugging Face folder that describes a GGUF file, made on first use and after a change of the file.

    Raises `BareloopError` for a damaged file, or a model that is not implemented.
    """
    paths = [shard.resolve() for shard in shards(path)]
    code = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    key = hashlib.sha256(files_key(paths).encode() + code).hexdigest()[:16]
    folder = user_cache("gguf") / f"{path.name.removesuffix('.gguf')[:60]}-{key}"
    if folder.is_dir():
        return folder
    files = _describe(paths)
    try:
        with draft_folder(folder) as draft:
            for name, content in files.items():
                (draft / name).write_text(content, encoding="utf-8")
    except OSError as error:
        if not folder.is_dir():  # otherwise another process was faster
            raise BareloopError(
                f"cannot write {folder}: {error.strerror}; set XDG_CACHE_HOME to another folder"
            ) from error
    return folder


def _describe(paths: list[Path]) -> dict[str, str]:
    """The content of the folder's files by name."""
    from engine.checkpoints.gguf.config import config_json
    from engine.checkpoints.gguf.metadata import Metadata
    from engine.checkpoints.gguf.vocabulary import Vocabulary

    opened = [GGUFFile(path) for path in paths]
    metadata = Metadata(opened[0].metadata, paths[0])
    shapes = {name: info.shape for file in opened for name, info in file.tensors.items()}
    config = config_json(metadata, shapes, _rope_factors(opened))
    vocabulary = Vocabulary(opened[0].metadata, paths[0])
    return {
        "config.json": json.dumps(config | vocabulary.special_ids(), indent=2) + "\n",
        "tokenizer.json": vocabulary.tokenizer().to_str(),
        "tokenizer_config.json": json.dumps(vocabulary.settings(), indent=2) + "\n",
        POINTER: json.dumps({"files": [str(path) for path in paths]}) + "\n",
    }


def _rope_factors(files: list[GGUFFile]) -> list[float]:
    import torch

    from engine.checkpoints.gguf.tensors import ROPE_FREQS, GGUFTensor
    from engine.models.decoder import MAX_HEAD_DIM

    for file in files:
        if (info := file.tensors.get(ROPE_FREQS)) is not None:
            if math.prod(info.shape) > MAX_HEAD_DIM // 2:
                raise BareloopError(f"{file.path}: {ROPE_FREQS} has the shape {list(info.shape)}")
            factors = torch.empty(info.shape)
            GGUFTensor(file, torch.float32, info.shape, info.start, info).read_into(factors)
            return factors.flatten().tolist()
    return []


def open_gguf(folder: Path) -> dict[str, Stored] | None:
    """The tensors of the GGUF file that a folder made by `as_folder` describes; None for any other folder."""
    files = [GGUFFile(path) for path in gguf_files(folder)]
    if not files:
        return None
    from engine.checkpoints.gguf.tensors import checkpoint_tensors

    architecture, config = files[0].metadata["general.architecture"], read_json(folder / "config.json")
    return {name: stored for file in files for name, stored in checkpoint_tensors(file, architecture, config).items()}


def gguf_files(folder: Path) -> list[Path]:
    """The GGUF files that a folder made by `as_folder` describes; empty for any other folder."""
    if folder.resolve().parent != user_cache("gguf").resolve():
        return []
    return [Path(path) for path in read_json(folder / POINTER)["files"]]
