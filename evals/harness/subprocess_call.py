"""One call in a process of its own: what it takes is its own, and how it ends ends nothing else. No torch."""

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

from engine.runtime.errors import BareloopError, is_out_of_memory


def apart(function: Callable[..., Any], *arguments: Any, debug: bool = False) -> Any:
    """What a module's function returns in a fresh process; `debug` shows the traceback of what it raises.

    Raises its `BareloopError`, or a line that says what else it raised or how the process ended.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, debug, function, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        process.join()
        raise BareloopError(_ended(process.exitcode or 0)) from None
    finally:
        process.kill()
        process.join()
        ours.close()
    if isinstance(answer, BareloopError):
        raise answer
    return answer


def _serve(pipe: Connection, debug: bool, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answer: Any
    try:
        answer = function(*arguments)
    except Exception as error:
        if debug:
            traceback.print_exc()
        told = str(error).strip().partition("\n")[0]
        what = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {told}"
        answer = error if isinstance(error, BareloopError) else BareloopError(what)
    with contextlib.suppress(OSError):
        pipe.send(answer)


def _end_with_parent() -> None:
    """A parent that is killed cannot end its child, which would go on, and disturb what is measured next."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _ended(status: int) -> str:
    if status >= 0:
        return f"its process ended with status {status} and no answer"
    name = signal.Signals(-status).name
    return f"its process was ended by {name}" + (", mostly for lack of memory" if name == "SIGKILL" else "")
