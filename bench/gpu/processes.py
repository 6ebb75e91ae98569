"""Subprocesses of `bench.gpu_check`: with a time limit, or several at a time; what they printed, and how one failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Keyword arguments of subprocess: run in the project, with stdout and stderr as one text.
AS_TEXT: dict[str, Any] = {
    "cwd": ROOT,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
    "text": True,
    "errors": "replace",
}


def run_limited(command: Sequence[str], limit: float) -> tuple[int | None, list[str]]:
    """Run a command for at most `limit` seconds. -> its exit status, None if it was ended, and its lines of output"""
    environment = {**os.environ, "BARELOOP_ISA": "torch", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **AS_TEXT)
    try:
        output = process.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its own children, too
        return None, process.communicate()[0].splitlines()
    return process.returncode, output.splitlines()


def run_together(commands: Mapping[str, Sequence[str]], count: int) -> Iterator[tuple[str, int, list[str]]]:
    """Run commands, `count` at a time. -> the name, exit status and lines of output of each, when it ends

    They are in the process group of this process, so that the end of its time is theirs, and have a thread each.
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ}

    def start(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environment, check=False, **AS_TEXT)

    with ThreadPoolExecutor(count) as pool:
        names = {pool.submit(start, command): name for name, command in commands.items()}
        for future in as_completed(names):
            done = future.result()
            yield names[future], done.returncode, done.stdout.splitlines()


def read_figures(lines: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The figures among lines of output, JSON objects of a line each, and the other lines."""
    figures: dict[str, Any] = {}
    output = []
    for line in lines:
        try:
            found = json.loads(line) if line.startswith("{") else None
        except ValueError:
            found = None
        if found is None:
            output.append(line)
        else:
            figures |= found
    return figures, output


def describe_failure(status: int, output: Sequence[str]) -> str:
    """One line: the signal that ended a process, or the last line of its output and its exit status."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    last = next((line.strip() for line in reversed(output) if line.strip()), "no output")
    return f"exit status {status}: {last[:200]}"
