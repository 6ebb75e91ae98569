"""Servers started for a measurement: ours, and llama.cpp's where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.runtime.errors import BareloopError

ADDRESS = re.compile(r"http://[\w.]+:\d+")
LLAMA_SERVER = "llama-server"
POLL, END = 0.1, 30.0  # seconds between two looks at whether a server is ready; until one that has to end is killed


def bareloop_command(model: str | Path, *flags: str) -> list[str]:
    """Serve a model with bareloop, on any free port."""
    return [sys.executable, "-m", "engine.serve", "-m", str(model), "--port", "0", "--quiet", *flags]


def llama_command(file: Path, rows: int, window: int, threads: int) -> list[str]:
    """Serve a GGUF file with llama.cpp, with `rows` requests of `window` tokens at a time.

    Raises `BareloopError` if llama-server is not installed.
    """
    program = shutil.which(LLAMA_SERVER)
    if program is None:
        raise BareloopError(f"{LLAMA_SERVER} is not in the PATH")
    sizes = ["--parallel", str(rows), "--ctx-size", str(rows * window), "--threads", str(threads)]
    return [program, "-m", str(file), "--host", "127.0.0.1", "--port", "0", *sizes]


@contextmanager
def started(command: Sequence[str]) -> Iterator[str]:
    """Start a server and yield its address, as it prints it, once it is ready; end it afterwards.

    Raises `BareloopError`, with the last line that it printed, if it ends before.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    output = _Output(process)
    try:
        while not output.address or not _is_ready(output.address):
            if process.poll() is not None:
                output.thread.join()
                last = output.lines[-1] if output.lines else f"exit status {process.returncode}"
                raise BareloopError(f"{' '.join(command[:3])} has ended: {last}")
            time.sleep(POLL)
        yield output.address
    finally:
        process.terminate()
        try:
            process.wait(END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        output.thread.join()


class _Output:
    """Reads what a server prints, so that it never waits for a reader, and finds its address."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.address = ""
        self.lines: deque[str] = deque(maxlen=20)
        self._process = process
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if line.strip():
                    self.lines.append(line.strip())
                if not self.address and (found := ADDRESS.search(line)):
                    self.address = found[0]


def _is_ready(address: str) -> bool:
    """Whether it answers /health with 200; it does not while it loads its model."""
    import httpx2

    with suppress(httpx2.RequestError):
        # Reading certificates, which http:// does not need, takes 0.1 s.
        return httpx2.get(f"{address}/health", trust_env=False, verify=False, timeout=END).status_code == 200
    return False
