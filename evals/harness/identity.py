"""What tells one run from another: the name of its file, and the header in it."""

from __future__ import annotations

import hashlib
import platform
import re
import tomllib
from collections.abc import Iterable
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.checkpoints import embedded
from engine.runtime.files import local_path
from evals.data.catalogue import stem
from evals.harness.task import Task

if TYPE_CHECKING:
    import torch

    from engine.checkpoints.opening import Opened


def results_folder(options: Any, model: str) -> Path:
    """Where a model's files go: <output-dir>/<owner>__<name>, or the name of its folder."""
    is_path = _is_folder(model) or model.startswith((".", "/", "~")) or model.count("/") > 1
    name = local_path(model).resolve().name if is_path else re.sub(r'["<>:/|\\?*\[\]]+', "__", model)
    return local_path(options.output_dir) / name


def _is_folder(model: str) -> bool:
    return model != embedded.NAME and local_path(model).is_dir()


def run_file(task: Task, options: Any, model: str, device: str, dtype: str, quant: str) -> Path:
    """Where the records of one setting are."""
    begin = stem(task.name, task.split, task.shots, options.chat_template, options.single_turn)
    return results_folder(options, model) / f"{begin}_{device}_{dtype}_{quant}.run.jsonl"


def make_header(
    task: Task, options: Any, model: str, opened: Opened, device: torch.device, batch_tokens: int, batch_size: int = 0
) -> dict[str, Any]:
    """All that a record depends on, and when, where and with which code the run was begun."""
    from engine.runtime.device import dtype_name

    return {
        "task": task.name,
        "shots": task.shots,
        "split": task.split,
        "chat": options.chat_template,
        "single_turn": options.single_turn,
        "model": str(local_path(model).resolve()) if _is_folder(model) else model,
        "max_length": opened.config.max_position_embeddings,
        **hashes(opened),
        "data": task.digest,
        "batch_tokens": batch_tokens,
        **({"batch_size": batch_size} if task.writing else {}),
        "seed": 0,
        "device": device.type,
        "dtype": dtype_name(opened.dtype),
        "quant": opened.quant,
        "version": _version(),
        "date": datetime.now().isoformat(timespec="seconds"),
        "machine": machine(device),
    }


def hashes(opened: Opened) -> dict[str, str]:
    """What tells a checkpoint from another: SHA-256 of its weights, config.json, and files of the tokenizer."""
    from engine.checkpoints.hub import TOKENIZER_FILES
    from engine.checkpoints.pickles import find_tensors
    from engine.checkpoints.safetensors import fingerprint

    def digest(names: Iterable[str]) -> str:
        paths = [opened.folder / name for name in names if (opened.folder / name).exists()]
        return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in paths)).hexdigest()

    return {
        "weights": fingerprint(find_tensors(opened.folder)),
        "config": digest(["config.json"]),
        "tokenizer": digest(sorted(TOKENIZER_FILES)),
    }


def _version() -> str:
    try:
        return metadata.version("bareloop")
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        project = Path(__file__).parents[2] / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"]) if project.exists() else "unknown"


def machine(device: torch.device) -> str:
    """What it was run on: the GPU's name, or the processor and the number of threads."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
