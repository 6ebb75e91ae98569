"""A call in a process of its own: its answer, its errors, its end, and that of its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from engine.quant import canonical
from engine.runtime.errors import BareloopError, UsageError
from evals.harness.subprocess_call import apart


def test_an_answer_comes_from_another_process():
    assert apart(divmod, 7, 2) == (3, 1)
    assert apart(os.getpid) != os.getpid()


def test_an_error_of_ours_is_raised_as_it_is():
    with pytest.raises(UsageError, match="unknown weight format 'int3'; use none, int8"):
        apart(canonical, "int3")


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ((int, "many"), "ValueError: invalid literal for int"),
        ((bytearray, 2**60), "^out of memory$"),
        ((os._exit, 3), "its process ended with status 3 and no answer"),
        ((signal.raise_signal, signal.SIGKILL), "its process was ended by SIGKILL, mostly for lack of memory"),
        ((signal.raise_signal, signal.SIGSEGV), "its process was ended by SIGSEGV$"),
    ],
)
def test_whatever_else_happens_is_one_line(call, line):
    with pytest.raises(BareloopError, match=line):
        apart(*call)


def test_ctrl_c_is_left_to_the_parent():
    assert apart(signal.raise_signal, signal.SIGINT) is None


def test_debug_shows_the_traceback(capfd):
    with pytest.raises(BareloopError):
        apart(int, "many", debug=True)
    assert "Traceback" in capfd.readouterr().err


def test_nobody_outlives_a_parent_that_is_killed():
    waits = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    program = f"from evals.harness.subprocess_call import apart; apart(exec, {waits!r})"
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert int(parent.stdout.readline()) != parent.pid
    parent.kill()
    start = time.monotonic()
    assert parent.stdout.read() == ""  # the end of what both could write to
    assert time.monotonic() - start < 20
    parent.wait()
