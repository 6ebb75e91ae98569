"""Engines in the process of a test, in place of those in their own processes, which load torch again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.peer_engines import load_engine


def load_nothing(name: str) -> Callable[..., list[float]]:
    """An engine for tests of the process alone, which has nothing to import."""
    return lambda *job: []


class SharedWorker:
    """An engine in this process, where its modules are loaded already."""

    def __init__(self, name: str, *settings: Any, load: Callable[..., Callable[..., Any]] = load_engine) -> None:
        self.run = load(name, *settings)

    def close(self) -> None:
        """There is nothing to end."""
