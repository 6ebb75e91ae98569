"""What runs in a worker's process: blocks come in, records go out. No torch, no Ray.

A worker has a job, which answers blocks one after the other. It pulls the next block when it has room for it, so that
generated answers of two blocks are decoded together and the device is never idle while a block ends.
"""

from __future__ import annotations

import importlib
import queue
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

COMPUTES_ON = "computes on"  # in a job's identity: the kind of device
PAUSE = 0.1  # seconds that a worker waits for another unit before it ends those that it has
Records = Sequence[tuple[Hashable, Any]]  # keys of questions, and what is written about them


@dataclass(frozen=True)
class Unit:
    """A block of questions that is handed to a worker."""

    name: str  # for messages, such as "anatomy 64-127"
    keys: tuple[Hashable, ...]  # of the questions that need an answer
    place: Any = None  # where the job finds the block

    def __str__(self) -> str:
        return self.name


class Job(Protocol):
    """What a worker does with blocks."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the records depend on, with the kind of device under `COMPUTES_ON`."""
        ...

    def answer(self, units: Iterator[Unit]) -> Iterator[Records]:
        """Yield a record for every key of the units, as soon as there is one."""
        ...


@dataclass
class _Part:
    """A unit that is being computed: the keys without a record, and the records on their way out."""

    missing: set[Hashable]
    records: queue.SimpleQueue[Records | BaseException | None] = field(default_factory=queue.SimpleQueue)


class Worker:
    """Computes units in a thread of its own, in the order in which they come."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._units: queue.SimpleQueue[tuple[Unit, _Part] | None] = queue.SimpleQueue()
        self._parts: dict[Hashable, _Part] = {}  # by key
        self._thread = threading.Thread(target=self._compute, daemon=True)
        self._thread.start()

    def answer(self, unit: Unit) -> Iterator[Records]:
        """Compute a unit and yield its records as they come. May be called by several threads at once."""
        if not unit.keys:
            return
        part = _Part(set(unit.keys))
        self._units.put((unit, part))
        while (records := part.records.get()) is not None:
            if isinstance(records, BaseException):
                raise records
            yield records

    def close(self) -> None:
        """End the thread, which holds the job, and wait for that."""
        self._units.put(None)
        self._thread.join()

    def _compute(self) -> None:
        while (first := self._units.get()) is not None:
            try:
                for records in self.job.answer(self._waiting(first)):
                    self._hand_out(records)
                if self._parts:
                    raise RuntimeError(f"no record came for {list(self._parts)[:3]}")
            except BaseException as error:
                parts = {id(part): part for part in self._parts.values()}
                self._parts.clear()
                for part in parts.values():
                    part.records.put(error)

    def _waiting(self, first: tuple[Unit, _Part]) -> Iterator[Unit]:
        """Yield this unit and those that wait. It ends where waiting for another one would hold up answers."""
        pair: tuple[Unit, _Part] | None = first
        while pair is not None:
            unit, part = pair
            self._parts.update(dict.fromkeys(unit.keys, part))
            yield unit
            try:
                pair = self._units.get(timeout=PAUSE)
            except queue.Empty:
                return
        self._units.put(None)  # for `_compute`

    def _hand_out(self, records: Records) -> None:
        """Give records to the threads that wait for them."""
        by_part: dict[int, tuple[_Part, list[tuple[Hashable, Any]]]] = {}
        for key, record in records:
            part = self._parts.pop(key)
            part.missing.discard(key)
            by_part.setdefault(id(part), (part, []))[1].append((key, record))
        for part, own in by_part.values():
            part.records.put(own)
            if not part.missing:
                part.records.put(None)


class Host:
    """A worker's process, from the first job to the last. What a job loads is kept for the next one."""

    def __init__(self) -> None:
        self._cache: dict[str, Any] = {}
        self._worker: Worker | None = None

    def begin(self, job: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Begin a job and return its identity. `job`: "module:name" of a function of (cache, **arguments)."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None  # frees what the last job had loaded, if this one does not need it
        module, _, name = job.partition(":")
        make: Callable[..., Job] = getattr(importlib.import_module(module), name)
        self._worker = Worker(make(self._cache, **arguments))
        return self._worker.job.identity

    def answer(self, unit: Unit) -> Iterator[Records]:
        """Compute a unit of the job that was begun."""
        assert self._worker is not None, "begin comes first"
        yield from self._worker.answer(unit)
