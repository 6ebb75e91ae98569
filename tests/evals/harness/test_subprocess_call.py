"""Calls in a subprocess: results, errors, how the process ends, and how it ends with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from engine.quant import canonical
from engine.runtime.errors import BareloopError, UsageError
from evals.harness.subprocess_call import run_in_subprocess


def test_the_result_comes_from_another_process():
    assert run_in_subprocess(divmod, 7, 2) == (3, 1)
    assert run_in_subprocess(os.getpid) != os.getpid()


def test_a_bareloop_error_is_raised_unchanged():
    with pytest.raises(UsageError, match="unknown weight format 'int3'; use none, int8"):
        run_in_subprocess(canonical, "int3")


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ((int, "many"), "ValueError: invalid literal for int"),
        ((bytearray, 2**60), "^out of memory$"),
        ((os._exit, 3), "its process ended with status 3 and without a result"),
        ((signal.raise_signal, signal.SIGKILL), "its process was ended by SIGKILL, usually for lack of memory"),
        ((signal.raise_signal, signal.SIGSEGV), "its process was ended by SIGSEGV$"),
    ],
)
def test_other_failures_are_one_line(call, line):
    with pytest.raises(BareloopError, match=line):
        run_in_subprocess(*call)


def test_ctrl_c_is_left_to_the_parent():
    assert run_in_subprocess(signal.raise_signal, signal.SIGINT) is None


def test_debug_shows_the_traceback(capfd):
    with pytest.raises(BareloopError):
        run_in_subprocess(int, "many", debug=True)
    assert "Traceback" in capfd.readouterr().err


def test_a_subprocess_ends_when_its_parent_is_killed():
    """The subprocess waits forever on a pipe. stdout ends when both processes have ended."""
    code = "import os; print(os.getpid(), flush=True); os.read(os.pipe()[0], 1)"
    program = f"from evals.harness.subprocess_call import run_in_subprocess; run_in_subprocess(exec, {code!r})"
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert int(parent.stdout.readline()) != parent.pid
    parent.kill()
    assert parent.stdout.read() == ""
    parent.wait()
