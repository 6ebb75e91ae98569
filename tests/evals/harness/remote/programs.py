"""Benchmark programs, run in this process."""

from __future__ import annotations

import contextlib
import io
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.cli import parser as cli

QUESTIONS = ("--shots", "1", "--limit", "2")


def run(module: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            cli.run(module.parser(), module.main, arguments)
        except SystemExit as exit_:
            status = int(str(exit_.code))
    return subprocess.CompletedProcess(list(arguments), status, stdout.getvalue(), stderr.getvalue())


def ask(module: Any, output: Path, urls: Sequence[str], *more: str) -> subprocess.CompletedProcess[str]:
    """Run a program on servers."""
    return run(module, "--url", *urls, "--output-dir", str(output), *more)


def last_line(process: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error."""
    assert process.returncode == 1, process.stderr
    return process.stderr.splitlines()[-1]
