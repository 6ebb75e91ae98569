"""Run identity: file name and header."""

from __future__ import annotations

import hashlib
import platform
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.checkpoints import embedded
from engine.cli.parser import label, short_name
from engine.runtime.files import local_path
from evals.data.catalogue import run_stem
from evals.harness.task import Task
from evals.runs.collection import RUN_SUFFIX
from evals.runs.run_file import INFORMATIONAL, REMOTE

if TYPE_CHECKING:
    import torch

    from engine.checkpoints.opening import Opened


def results_folder(options: Any, model: str) -> Path:
    """Return the folder of a model's files in --output-dir: <owner>__<name>, or the name of its folder or file.

    With --adapter the adapter's name follows: gpt2+gpt2-squad.
    """
    return local_path(options.output_dir) / label(file_name(model), options.adapter, "+")


def file_name(model: str) -> str:
    """Return a model's name as a part of file names: <owner>__<name>, or the name of its folder or file."""
    is_path = _is_local(model) or model.startswith((".", "/", "~")) or model.count("/") > 1
    hub_name = re.sub(r'["<>:/|\\?*\[\]]+', "__", model)
    return short_name(model).removesuffix(".gguf") if is_path else hub_name


def place(name: str) -> str:
    """Return the absolute path of a model or adapter that is here, any other name unchanged."""
    return str(local_path(name).resolve()) if _is_local(name) else name


def _is_local(model: str) -> bool:
    return model not in embedded.ABOUT and local_path(model).exists()


def run_path(task: Task, options: Any, model: str, *setting: str) -> Path:
    """Return the path of the run file of one setting: device, dtype and weight format, or `REMOTE`."""
    stem = run_stem(task.name, task.split, task.shots, options.chat_template, options.single_turn)
    return results_folder(options, model) / f"{'_'.join((stem, *setting))}{RUN_SUFFIX}"


def make_header(
    task: Task, options: Any, model: str, opened: Opened, device: torch.device, batch_tokens: int, batch_size: int = 0
) -> dict[str, Any]:
    """Return everything that a record depends on, and when, where and by which version the run was started.

    `batch_size`: answers generated in parallel, on which only the times depend.
    """
    from engine.runtime.device import dtype_name

    return {
        **_prompts(task, options),
        "model": place(model),
        **({} if options.adapter is None else {"adapter": place(options.adapter)}),
        "max_length": opened.config.max_position_embeddings,
        **hashes(opened),
        "data": task.digest,
        "batch_tokens": batch_tokens,
        **({"batch_size": batch_size} if task.generation else {}),
        "seed": 0,
        "device": device.type,
        "dtype": dtype_name(opened.dtype),
        "quant": opened.quant,
        **start(),
        "machine": machine(device),
    }


def make_remote_header(task: Task, options: Any, model: str, max_length: int, urls: Sequence[str]) -> dict[str, Any]:
    """Return the header of a run on servers, which do not tell on what, and with which weights, they compute."""
    return {
        **_prompts(task, options),
        "model": model,
        "max_length": max_length,
        "data": task.digest,
        "seed": 0,
        **dict.fromkeys(("device", "dtype", "quant"), REMOTE),
        "url": list(urls),
        **start(),
    }


def _prompts(task: Task, options: Any) -> dict[str, Any]:
    return {
        "task": task.name,
        "shots": task.shots,
        "split": task.split,
        "chat": options.chat_template,
        "single_turn": options.single_turn,
    }


def start() -> dict[str, str]:
    """Return the version and the date of a run that is started now."""
    return {"version": _version(), "date": datetime.now().isoformat(timespec="seconds")}


def hashes(opened: Opened) -> dict[str, str]:
    """Return SHA-256 hashes that identify a checkpoint: of its weights, config.json, and the tokenizer's files.

    An adapter is part of the weights.
    """
    from engine.checkpoints.hub import TOKENIZER_FILES
    from engine.checkpoints.opening import weights_fingerprint

    def digest(names: Iterable[str]) -> str:
        paths = [opened.folder / name for name in names if (opened.folder / name).exists()]
        return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in paths)).hexdigest()

    return {
        "weights": weights_fingerprint(opened.folder, opened.adapter),
        "config": digest(["config.json"]),
        "tokenizer": digest(sorted(TOKENIZER_FILES)),
    }


def _version() -> str:
    try:
        return metadata.version("bareloop")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        project = Path(__file__).parents[2] / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"]) if project.exists() else "unknown"


def machine(device: torch.device) -> str:
    """Describe the hardware: the GPU's name, or the processor and the number of threads."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def lasting(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a header that may not differ between the parts of a run."""
    return {name: value for name, value in header.items() if name not in INFORMATIONAL}


def computing_kind(device: torch.device) -> str:
    """Describe what the bits of results depend on: the GPU's or the processor's name, the kernels, torch's version."""
    import torch

    from engine import kernels

    if device.type != "cpu":
        return f"{machine(device)}, torch {torch.__version__}"
    kernels.wait()
    return f"{cpu_name()}, {kernels.describe()}, torch {torch.__version__}"


def cpu_name() -> str:
    """Return the model name of the processor, or its architecture if the system does not report it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
