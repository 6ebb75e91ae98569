"""Run a function in a subprocess, so that its memory use and crashes do not affect the caller. No torch."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from engine.runtime.errors import BareloopError, describe


def run_in_subprocess(function: Callable[..., Any], *arguments: Any, debug: bool = False) -> Any:
    """Call a module-level function in a new process and return its result. `debug` prints the traceback of an error.

    Raises the function's `BareloopError`, or one that names its exception or how the process ended.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender, debug, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        raise BareloopError(_describe_exit(process.exitcode or 0)) from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if isinstance(result, BareloopError):
        raise result
    return result


def _serve(sender: Connection, debug: bool, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then kills this process
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    result: Any
    try:
        result = function(*arguments)
    except Exception as error:
        if debug:
            traceback.print_exc()
        result = error if isinstance(error, BareloopError) else BareloopError(describe(error))
    with contextlib.suppress(OSError):
        sender.send(result)


def _exit_with_parent() -> None:
    """End this process when the parent ends. A killed parent cannot, and the child would disturb later measurements."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _describe_exit(status: int) -> str:
    if status >= 0:
        return f"its process ended with status {status} and without a result"
    name = signal.Signals(-status).name
    return f"its process was ended by {name}" + (", usually for lack of memory" if name == "SIGKILL" else "")
