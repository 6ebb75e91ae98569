"""Start a program and stop it at a definite point of its run, so that tests do not race with it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# AppendFile truncates its file before each append. Python reports that to audit hooks; `sitecustomize` installs one in
# the program and in its subprocesses.
SITECUSTOMIZE = """
import os, sys
appends = 0
def pause(event, arguments):
    global appends
    if event == "os.truncate":
        appends += 1
        if appends == int(os.environ["PAUSE_AT_APPEND"]):
            open(os.environ["PAUSE_FOLDER"] + "/reached", "w").close()
            open(os.environ["PAUSE_FOLDER"] + "/forever").read()  # a pipe that nobody writes to
sys.addaudithook(pause)
"""


@contextlib.contextmanager
def paused(folder: Path, module: str, arguments: Sequence[str], batches: int = 1) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m module arguments` until `batches` batches are saved; it waits before it appends the next.

    Yield the waiting process, and kill it at the end. `folder` is for auxiliary files.
    """
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    (folder / "reached").unlink(missing_ok=True)
    if not (folder / "forever").exists():
        os.mkfifo(folder / "forever")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", "")))}
    environment |= {"PAUSE_FOLDER": str(folder), "PAUSE_AT_APPEND": str(batches + 1)}
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        while not (folder / "reached").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()
