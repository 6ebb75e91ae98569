"""What all parts of the server share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from engine.serve.engine import Engine
    from engine.serve.engines import Engines
    from engine.serve.request_log import Observer
    from engine.serve.security import Security


@dataclass(frozen=True)
class Limits:
    """What one request can ask for."""

    default_new_tokens: int = 4096  # of a chat reply whose request names no number; memory is reserved for all of them
    timeout: float = 600.0  # seconds that a request may take
    ping_seconds: float = 15.0  # of silence, after which a stream sends a comment


class ProcessEngines(Protocol):
    """What a server's process needs of its models, see `Engines`."""

    on_death: Callable[[Engine], None]

    @property
    def names(self) -> Sequence[str]: ...

    async def preload(self) -> Any:
        """Load the first model."""

    def problem(self) -> str | None:
        """Why requests cannot be answered now; None if they can."""

    def close(self) -> bool:
        """End all requests. -> False if a thread is still at work"""


class ProcessState(Protocol):
    """What a server's process needs to know of what it serves. `draining`: as in `ServerState`."""

    draining: bool

    @property
    def engines(self) -> ProcessEngines: ...

    @property
    def observer(self) -> Observer: ...


@dataclass
class ServerState:
    """One server of the API."""

    engines: Engines
    observer: Observer
    security: Security
    limits: Limits = field(default_factory=Limits)
    draining: bool = False  # no new requests are taken, and the server ends with the last one
    large_bodies: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))  # that are prepared at once
    started: float = field(default_factory=time.time)
