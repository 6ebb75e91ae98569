"""What all parts of the server share."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.serve.engines import Engines
    from engine.serve.request_log import Observer
    from engine.serve.security import Security


@dataclass(frozen=True)
class Limits:
    """What one request can ask for."""

    default_new_tokens: int = 4096  # of a chat reply whose request names no number; memory is reserved for all of them
    timeout: float = 600.0  # seconds that a request may take
    ping_seconds: float = 15.0  # of silence, after which a stream sends a comment


@dataclass
class ServerState:
    """One server."""

    engines: Engines
    observer: Observer
    security: Security
    limits: Limits = field(default_factory=Limits)
    draining: bool = False  # no new requests are taken, and the server ends with the last one
    large_bodies: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))  # that are prepared at once
    started: float = field(default_factory=time.time)
