"""Run the program here or in a process of its own, and read its log."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.cli.parser import run
from engine.finetune import __main__ as program
from engine.finetune import log

# What a run imports at some time.
PRELOAD = ["engine.finetune.run", "torch.fx.experimental.symbolic_shapes", "torch._dynamo", "safetensors.torch"]
PRELOAD += [
    "rich.console",
    "rich.live",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "torch.utils.checkpoint",
]


def finetune(arguments: list[str], draws: bool = False) -> None:
    """Run the program here. `draws`: with the picture of its losses, which takes half of the time of a short run."""
    torch.manual_seed(99)  # which must not matter
    with pytest.MonkeyPatch.context() as patch:
        if not draws:
            patch.setattr(log, "draw", lambda *_: None)
        program.main(program.parser().parse_args(arguments))


def start(arguments: list[str], errors: Path, interrupted: Path | None = None) -> BaseProcess:
    """Run the program in a process of its own, forked from one that has loaded torch; `errors`: file of its stderr.

    `interrupted`: a file that it waits for after its fourth step; without it, there is a pause after each step.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=finetune_slowly, args=(arguments, errors, interrupted))
    process.start()
    return process


def finetune_slowly(arguments: list[str], errors: Path, interrupted: Path | None) -> None:
    """Run the program here so that no machine is too fast for a signal between its steps."""
    show = log.Display.step

    def show_slowly(display: log.Display, event: Mapping[str, Any], memory_bytes: int) -> None:
        show(display, event, memory_bytes)
        if interrupted is None:
            time.sleep(0.02)
        elif event["step"] == 4:
            wait_for(interrupted.exists)

    log.Display.step = show_slowly  # type: ignore[assignment, method-assign]
    with errors.open("w") as sys.stderr:
        run(program.parser(), program.main, arguments)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The events of a kind in a run's log."""
    lines = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return [event for event in lines if event["kind"] == kind]


def count_steps(folder: Path) -> int:
    """Number of steps in the log so far."""
    path = folder / "log.jsonl"
    return path.read_text().count('"kind": "step"') if path.exists() else 0


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until something is so; at most for a time that ends a test that hangs."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
