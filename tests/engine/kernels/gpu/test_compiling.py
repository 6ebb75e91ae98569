"""Every kernel compiles for real GPUs, and fits into their shared memory. Takes a minute; no GPU is needed."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("capability", [80, 90])
def test_all_kernels_compile(capability):
    files = [str(path) for path in sorted(FOLDER.glob("test_*.py")) if "\ndef calls()" in path.read_text()]
    assert files
    command = [sys.executable, str(FOLDER / "compiling.py"), str(capability), *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("\n") >= len(files)
