"""Benchmarks before and after: the programs of `evals`, each in a process of its own. Loads without torch."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.runtime.errors import BareloopError, UsageError

BENCHMARKS = ("mmlu", "hellaswag", "arc", "truthfulqa", "gsm8k", "squad")
FOLDER = "evaluations"


def split_flags(options: str) -> list[str]:
    """The flags of --evaluate-options. Raises `UsageError` for a text that no shell takes."""
    try:
        return shlex.split(options)
    except ValueError as error:
        raise UsageError(f"--evaluate-options {shlex.quote(options)}: {error}; give flags as in a shell") from None


def commands(names: Sequence[str], model: str, flags: Sequence[str], options: str, folder: Path) -> list[list[str]]:
    """The command line of each benchmark for a model. `options`: flags for all, as in a shell."""
    common = ["--model", model, *flags, "--output-dir", str(folder), *split_flags(options)]
    return [[sys.executable, "-m", f"evals.{name}", *common] for name in names]


def evaluate(names: Sequence[str], model: str, flags: Sequence[str], options: str, folder: Path) -> None:
    """Score a model on benchmarks; what has been scored before is not scored again.

    Raises `BareloopError` if one fails; its own output says why.
    """
    for command in commands(names, model, flags, options, folder):
        print(f"$ {shlex.join(['python', *command[1:]])}", file=sys.stderr, flush=True)
        status = subprocess.run(command, check=False).returncode
        if status:
            raise BareloopError(f"{command[2]} ended with status {status}; correct --evaluate-options, or leave it out")


def next_commands(folder: Path) -> list[str]:
    """What to run to see the difference."""
    return [f"python -m evals.compare {shlex.quote(str(folder))}", f"python -m evals.report {shlex.quote(str(folder))}"]
