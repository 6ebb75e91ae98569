"""Checkpoints of a training run: files that are complete at any moment, and hold no code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.finetune.settings import check_same
from engine.runtime.errors import BareloopError

FILE = "checkpoint.pt"


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint. At any moment, also after a power cut, the file is the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    try:
        with draft.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise BareloopError(f"cannot write {path}: {error.strerror}; free some space, and resume") from error
    finally:
        draft.unlink(missing_ok=True)


def load_checkpoint(path: Path, settings: Mapping[str, Any], way_out: str) -> dict[str, Any]:
    """Read a checkpoint, with its tensors on the CPU.

    Raises `BareloopError` that names the settings that differ from those it was written with, and suggests `way_out`.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises many kinds of errors
        raise BareloopError(f"cannot read {path}: {error}".split("\n", maxsplit=1)[0]) from error
    check_same(state["settings"], settings, str(path), way_out)
    return dict(state)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name; a tied one is listed once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    """What a run needs to continue with the same bits after `step` steps.

    The order of the data and the dropout depend only on the seed and the step, so that no generator is saved.
    """
    parameters = {name: parameter.detach() for name, parameter in trained(model).items()}
    return {"parameters": parameters, "optimizer": optimizer.state_dict(), "step": step}


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> int:
    """Set parameters and optimizer to those of `training_state` -> the number of steps that are done."""
    with torch.no_grad():
        for name, parameter in trained(model).items():
            parameter.copy_(state["parameters"][name])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can open folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
