"""One worker as the driver sees it: a process that is started, told what to do, asked, and replaced when it ends."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from engine.runtime.errors import BareloopError, UsageError, describe, first_line
from evals.harness.dispatch import MAX_DEATHS, WorkerLostError
from evals.harness.workers.worker import COMPUTES_ON, Host, Records, Unit

PATIENCE = 30  # seconds without a place for a worker before the user is told


class Assignment:
    """What all workers do: a job and its arguments, see `Host.begin`.

    `identity`: what the records depend on; every worker must have the same.
    """

    def __init__(self, job: str, arguments: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
        self.job, self.arguments, self.identity = job, arguments, identity
        self._kind: str | None = None  # of the first worker's device
        self._lock = threading.Lock()

    def check(self, name: str, identity: Mapping[str, Any], mixed: bool) -> None:
        """Raise `BareloopError` if records of a worker of this identity would differ.

        `mixed`: its device may be of another kind than the first one's.
        """
        with self._lock:
            kind = self._kind = self._kind or identity[COMPUTES_ON]
        expected = {**self.identity, COMPUTES_ON: kind}
        for key in expected.keys() | identity.keys():
            if expected.get(key) == identity.get(key) or (mixed and key == COMPUTES_ON):
                continue
            hint = "give all nodes the same model and data"
            if key == COMPUTES_ON:
                hint = "use machines of one kind, or --mixed-devices, which allows other last bits"
            raise BareloopError(
                f"{name} differs in {key} ({identity.get(key)}, expected was {expected.get(key)}); {hint}"
            )


class Owner(Protocol):
    """What a worker needs of the pool that it belongs to."""

    ray: Any  # the module
    address: str | None  # of a cluster
    threads: int  # of each worker
    gpus: int  # of each worker
    in_flight: int  # units at a time for each worker
    mixed: bool  # whether devices may be of different kinds
    recorded: set[Hashable]  # keys of the questions whose records have come

    def tell(self, line: str, once: bool = False) -> None:
        """Tell the user something; with `once`, only the first time."""
        ...


@dataclass
class _Process:
    """A worker's process."""

    actor: Any
    placed: Any  # Ray's reference to a result that comes when the process runs
    assignment: Assignment | None = None  # what it was told to begin
    begun: Any = None  # the reference to that call's result
    is_ready: bool = False  # it has come
    computed: Unit | None = None  # when it ended


class RayWorker:
    """One worker. Several threads ask it at once, and any of them may see first that its process has ended."""

    def __init__(self, pool: Owner, number: int) -> None:
        self.pool, self.name = pool, f"worker {number}"
        self.assignment: Assignment | None = None
        self._process: _Process | None = None
        self._units: list[Unit] = []  # in flight, the one that is computed first
        self._early_ends = 0  # of processes in a row that had not begun
        self._starting = threading.Lock()  # held while a process is made ready
        self._state = threading.Lock()  # of `_process` and `_units`; never held while waiting

    def units_in_flight(self) -> list[Unit]:
        """The units that the worker has, the one that it computes first."""
        with self._state:
            return [*self._units]

    def prepare(self, is_over: Callable[[], bool]) -> None:
        """Make a process ready, a new one if there is none. Return when it is, or `is_over` returns True.

        Raises the job's own error, and `BareloopError` if the process ends before it is ready, several times.
        """
        ray = self.pool.ray
        with self._starting:
            while self._ready() is None and not is_over():
                process = self._process or self._start()
                try:
                    self._begin(process, is_over)
                except ray.exceptions.RayTaskError as error:
                    raise self._explain(error) from None
                except ray.exceptions.RayError as error:
                    self._drop(process)
                    self._early_ends += 1
                    if self._early_ends == MAX_DEATHS:
                        hint = "use fewer --workers if memory is short"
                        if self.pool.address is not None:
                            hint += ", and the cluster's RAY_AUTH_MODE and token"
                        raise BareloopError(
                            f"{self.name} ended {MAX_DEATHS} times before it began ({first_line(error)}); {hint}"
                        ) from None

    def answer(self, unit: Unit) -> Iterator[Records]:
        """Compute what is left of a unit, and yield its records as they come.

        Raises `WorkerLostError` if the process ends.
        """
        ray = self.pool.ray
        with self._state:
            process = self._ready()
            self._units.append(unit)
        try:
            if process is None:  # it has ended since `prepare`
                raise WorkerLostError(f"{self.name} has ended", has_begun=False)
            left = replace(unit, keys=tuple(key for key in unit.keys if key not in self.pool.recorded))
            for reference in process.actor.answer.options(num_returns="streaming").remote(left):
                records = ray.get(reference)
                self.pool.recorded.update(key for key, _ in records)
                yield records
        except ray.exceptions.RayTaskError as error:
            raise self._explain(error) from None
        except ray.exceptions.RayError as error:
            reason = "its node ran out of memory" if "OutOfMemory" in type(error).__name__ else "its process has ended"
            if self._drop(process):
                self.pool.tell(f"{self.name}: {reason}; another takes its place")
            has_begun = process is not None and process.computed is unit
            raise WorkerLostError(f"{self.name}: {reason}", has_begun) from None
        finally:
            with self._state:
                self._units.remove(unit)

    def end(self) -> None:
        """End the process."""
        self._drop(self._process)

    def _ready(self) -> _Process | None:
        process = self._process
        is_ready = process is not None and process.is_ready and process.assignment is self.assignment
        return process if is_ready else None

    def _start(self) -> _Process:
        """Ask Ray for a process."""
        pool = self.pool
        # a thread for each unit in flight, and one to begin the next job
        remote = pool.ray.remote(num_cpus=pool.threads, num_gpus=pool.gpus, max_concurrency=pool.in_flight + 1)
        actor = remote(Host).remote()
        process = _Process(actor, actor.__ray_ready__.remote())
        with self._state:
            self._process = process
        return process

    def _begin(self, process: _Process, is_over: Callable[[], bool]) -> None:
        """Tell a process what to do and wait until it is ready, or `is_over` returns True: it may be ready later."""
        if process.assignment is not self.assignment:
            if process.begun is not None and not self._wait(process, process.begun, is_over):
                return  # of the last run; two jobs must not begin at the same time
            assert self.assignment is not None
            job, arguments = self.assignment.job, self.assignment.arguments
            process.assignment, process.is_ready = self.assignment, False
            process.begun = process.actor.begin.remote(job, arguments)
        if self._wait(process, process.begun, is_over):
            assert process.assignment is not None
            process.assignment.check(self.name, self.pool.ray.get(process.begun), self.pool.mixed)
            process.is_ready, self._early_ends = True, 0

    def _wait(self, process: _Process, reference: Any, is_over: Callable[[], bool]) -> bool:
        """Wait for a result. Return False if `is_over` returned True first."""
        ray, waited = self.pool.ray, 0
        while not ray.wait([reference], timeout=1)[0]:
            if is_over():
                return False
            waited += 1
            if waited == PATIENCE and not ray.wait([process.placed], timeout=0)[0]:
                wanted = f"{self.pool.gpus} GPU" if self.pool.gpus else f"{self.pool.threads} CPU core(s)"
                self.pool.tell(f"workers wait for a place: each needs a node with {wanted} free", once=True)
        return True

    def _drop(self, process: _Process | None) -> bool:
        """Forget a process, and make sure that it has ended. Return whether this thread is the first to do so."""
        with self._state:
            if process is None or self._process is not process:
                return False
            self._process = None
            process.computed = self._units[0] if self._units else None
        with contextlib.suppress(Exception):
            self.pool.ray.kill(process.actor)
        return True

    def _explain(self, error: Any) -> BareloopError:
        """The error that was raised in a worker, in one line."""
        cause = getattr(error, "cause", error)
        if isinstance(cause, BareloopError):
            where = "" if self.pool.address is None else f"{self.name}: "
            kind = UsageError if isinstance(cause, UsageError) else BareloopError
            return kind(f"{where}{cause.args[0]}")
        return BareloopError(f"{self.name}: {describe(cause)}")
