"""Run the program here or in a process of its own, and read its log."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from engine.finetune import __main__ as program


def finetune(arguments: list[str]) -> None:
    """Run the program here."""
    torch.manual_seed(99)  # which must not matter
    program.main(program.parser().parse_args(arguments))


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Run the program in a process of its own."""
    command = [sys.executable, "-m", "engine.finetune", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_quickly(arguments: list[str]) -> BaseProcess:
    """Run the program in a process of its own, forked from one that has loaded torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["engine.finetune.run", "torch.fx.experimental.symbolic_shapes"])
    process = context.Process(target=finetune, args=(arguments,))
    process.start()
    return process


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
