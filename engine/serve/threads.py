"""Threads for work that takes long, each for one call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

_running: set[threading.Thread] = set()  # of this process


def at_work() -> bool:
    """Whether a thread that `in_thread` started has not ended yet."""
    return bool(_running)


async def in_thread(work: Callable[[], T], name: str = "model loader") -> T:
    """Run a function in a thread that the process does not wait for when it ends, other than `asyncio.to_thread`'s."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:
            failure = error
        _running.discard(threading.current_thread())
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(deliver, result, failure)

    thread = threading.Thread(target=run, name=name, daemon=True)
    _running.add(thread)
    thread.start()
    return await future
