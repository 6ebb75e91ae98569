"""Checkpoints of a training run: files that are complete at any moment, and hold no code."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.finetune.settings import check_same
from engine.runtime.errors import BareloopError

FILE = "checkpoint.pt"
STATE = ("parameters", "optimizer", "step")


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint. At any moment, also after a power cut, the file is the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    try:
        with writing(path):
            with draft.open("wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise `BareloopError` for errors of the system within the block, such as a full disk.

    Where writing fails, torch and safetensors raise errors of their own, in which the system's is only the context or
    a part of the message.
    """
    try:
        yield
    except BareloopError:
        raise
    except Exception as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError):
            reason = cause.strerror
        elif type(error).__name__ == "SafetensorError":
            reason = str(error)
        else:
            raise
        raise BareloopError(f"cannot write {path}: {reason}; free some space, and resume") from error


def load_checkpoint(path: Path, settings: Mapping[str, Any], way_out: str, *more: str) -> dict[str, Any]:
    """Read a checkpoint, with its tensors on the CPU. `more`: keys that it has beside those of `training_state`.

    Raises `BareloopError` that names the settings that differ from those it was written with, and suggests `way_out`;
    and for a file that is damaged, or from a program of another version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BareloopError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # a damaged file raises many kinds of errors, with advice that does not help
        raise BareloopError(f"{path} is damaged; remove it to start over") from error
    keys = {"settings", "step"}
    if isinstance(state, dict) and not state.get("finished"):
        keys |= {*STATE, *more}
    if not isinstance(state, dict) or not keys <= state.keys():
        raise BareloopError(f"{path} is not from this version of the program; {way_out}")
    check_same(state["settings"], settings, str(path), way_out)
    return state


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name; a tied one is listed once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    """What a run needs to continue with the same bits after `step` steps.

    The order of the data and the dropout depend only on the seed and the step, so that no generator is saved.
    """
    parameters = {name: parameter.detach() for name, parameter in trained(model).items()}
    return {"parameters": parameters, "optimizer": optimizer.state_dict(), "step": step}


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> int:
    """Set parameters and optimizer to those of `training_state` -> the number of steps that are done.

    What is restored is removed from `state`, so that it is in memory once.
    """
    parameters = state.pop("parameters")
    with torch.no_grad():
        for name, parameter in trained(model).items():
            parameter.copy_(parameters.pop(name))
    optimizer.load_state_dict(state.pop("optimizer"))
    return int(state["step"])


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can open folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
