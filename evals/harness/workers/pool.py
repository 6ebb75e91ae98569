"""Workers as Ray actors, on this machine or on a cluster: started, watched, replaced when they end.

Ray starts the processes, on whichever node has room, and tells when one has ended. What they compute, and in which
order, is decided in the driver (evals.harness.dispatch); only the driver writes files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError, UsageError, is_out_of_memory
from evals.harness.dispatch import MAX_DEATHS, Dispatcher, WorkerLostError
from evals.harness.workers.worker import Host, Records, Unit

IN_FLIGHT = 2  # units at a time for each worker: one that it computes, and one that it can begin at once
OBJECT_STORE = 2**27  # bytes; records are small
PATIENCE = 30  # seconds without a place for a worker before the user is told
RAY_ENVIRONMENT = {  # read when it is imported
    "RAY_USAGE_STATS_ENABLED": "0",  # it reports to its makers otherwise
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that asks after the end would start it again
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # it prints a paragraph on stdout when a worker ends
}
MISSING = "--workers needs Ray; install it with: pip install 'bareloop[ray]'"


@dataclass(frozen=True)
class Assignment:
    """What all workers do: a job and its arguments, see `Host.begin`."""

    job: str
    arguments: Mapping[str, Any]


class Pool:
    """`count` workers, which end with the pool.

    `address`: of a Ray cluster; None for this machine. `gpus`: of each worker. `cores`: of this machine, which workers
    on its CPU share. `mixed`: allow workers on devices of different kinds, whose records may differ in their last bits.
    `in_flight`: units at a time for each worker.
    """

    def __init__(
        self,
        count: int,
        address: str | None,
        gpus: int,
        cores: int,
        mixed: bool = False,
        in_flight: int = IN_FLIGHT,
    ) -> None:
        self.count, self.address, self.gpus, self.mixed, self.in_flight = count, address, gpus, mixed, in_flight
        self.threads = 1 if gpus else max(1, cores // count)  # of each worker
        self.workers: list[RayWorker] = []
        self.ray: Any = None  # the module, once it has started
        self.identity: Mapping[str, Any] | None = None  # of the first worker that was ready
        self.recorded: set[Hashable] = set()  # keys of the questions whose records have come
        self._folder: str | None = None  # of Ray's sockets and logs
        self._lock = threading.Lock()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, assignment: Assignment, units: Sequence[Unit]) -> Iterator[list[Any]]:
        """Compute units, the first ones first, and yield their records as they come."""
        self.identity, self.recorded = None, set()
        for worker in self.workers:
            worker.assignment = assignment
        blocks = iter([[unit] for unit in units])
        work = Dispatcher(blocks, self.workers, self.in_flight, RayWorker.answer, _not_given_up, RayWorker.prepare)
        for records, _ in work:
            yield [record for _, record in records]

    def status(self) -> str:
        """What the workers compute now, such as "worker 1: anatomy 0-63, worker 2: virology 64-127"."""
        parts = [f"{worker.name}: {worker.units[0]}" for worker in self.workers if worker.units]
        return ", ".join(parts if len(parts) <= 4 else [*parts[:3], f"{len(parts) - 3} more"])

    def check(self, worker: RayWorker, identity: Mapping[str, Any]) -> None:
        """Raise `BareloopError` if a worker's results would differ from those of the others."""
        with self._lock:
            first = self.identity = self.identity or identity
        ignored = {"computes on"} if self.mixed else set()
        for name in first.keys() | identity.keys():
            if first.get(name) != identity.get(name) and name not in ignored:
                raise BareloopError(
                    f"{worker.name} differs from the first in {name} ({identity.get(name)}, not {first.get(name)})"
                    + (
                        "; use machines of one kind, or --mixed-devices, which allows other last bits"
                        if name == "computes on"
                        else "; give all nodes the same model and data"
                    )
                )

    def close(self) -> None:
        """End the workers, and Ray on this machine."""
        for worker in self.workers:
            worker.end()
        self.workers = []
        if self.ray is not None:
            with contextlib.suppress(Exception):
                self.ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Start or join Ray, if that was not done before. Raises `BareloopError` if it fails."""
        if self.workers:
            return
        ray = self.ray = load_ray(self.address)
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if self.address is None:
            self._folder = tempfile.mkdtemp(prefix="ray-")
            cores = max(self.count * self.threads, os.cpu_count() or 1)
            options |= {"address": "local", "num_cpus": cores, "object_store_memory": OBJECT_STORE}
            options |= {"include_dashboard": False, "_temp_dir": self._folder}
        else:
            options["address"] = self.address
        try:
            ray.init(**options)
        except Exception as error:  # ConnectionError, ValueError, RuntimeError, …, some with a page of text
            place = "on this machine" if self.address is None else f"at {self.address}"
            raise BareloopError(f"cannot start Ray {place}: {_first_line(error)}") from None
        if self.address is not None:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self.threads = 1 if self.gpus else threads_of_each(self.count, [int(node.get("CPU", 0)) for node in nodes])
        self.workers = [RayWorker(self, number) for number in range(1, self.count + 1)]


def threads_of_each(workers: int, cores: Sequence[int]) -> int:
    """The most threads with which so many workers fit on nodes with these numbers of cores; at least 1."""
    for threads in range(max(cores, default=1), 1, -1):
        if sum(node // threads for node in cores) >= workers:
            return threads
    return 1


class RayWorker:
    """One worker. Its process may end; then another one takes its place."""

    def __init__(self, pool: Pool, number: int) -> None:
        self.pool, self.name = pool, f"worker {number}"
        self.assignment: Assignment | None = None
        self.units: list[Unit] = []  # in flight, the one that is computed first
        self._actor: Any = None
        self._ready: tuple[Assignment, Any] | None = None  # what which process has begun
        self._ends = 0  # of processes, since one has begun a job
        self._blamed: Unit | None = None  # what the last process that ended had begun
        self._lock = threading.Lock()

    def prepare(self, is_over: Callable[[], bool]) -> None:
        """Start the process and its job if it has none. Return when it is ready, or `is_over` returns True.

        Raises the job's own error, and `BareloopError` if the process ends before it is ready, several times.
        """
        ray = self.pool.ray
        with self._lock:
            while self._ready is None or self._ready[0] is not self.assignment:
                assert self.assignment is not None
                if self._actor is None:
                    self._actor = self._new_actor()
                begun = self._actor.begin.remote(self.assignment.job, self.assignment.arguments)
                try:
                    if not self._wait(begun, is_over):
                        return
                    self.pool.check(self, ray.get(begun))
                    self._ready, self._ends = (self.assignment, self._actor), 0
                except ray.exceptions.RayTaskError as error:
                    raise self._explain(error) from None
                except ray.exceptions.RayError as error:
                    self._actor, self._ready, self._ends = None, None, self._ends + 1
                    if self._ends == MAX_DEATHS:
                        hint = "use fewer --workers if memory is short"
                        if self.pool.address is not None:
                            hint += ", and the cluster's RAY_AUTH_MODE and token"
                        raise BareloopError(
                            f"{self.name} ended {MAX_DEATHS} times before it began ({_first_line(error)}); {hint}"
                        ) from None

    def answer(self, unit: Unit) -> Iterator[Records]:
        """Compute what is left of a unit, and yield its records as they come.

        Raises `WorkerLostError` if the process ends.
        """
        ray, ready = self.pool.ray, self._ready
        self.units.append(unit)
        try:
            if ready is None:  # it has ended since
                raise WorkerLostError(f"{self.name} has ended", has_begun=False)
            left = replace(unit, keys=tuple(key for key in unit.keys if key not in self.pool.recorded))
            for reference in ready[1].answer.options(num_returns="streaming").remote(left):
                records = ray.get(reference)
                self.pool.recorded.update(key for key, _ in records)
                yield records
        except ray.exceptions.RayTaskError as error:
            raise self._explain(error) from None
        except ray.exceptions.RayError as error:
            self._lose(ready[1] if ready else None, error)
            raise WorkerLostError(f"{self.name}: {_reason(error)}", has_begun=unit is self._blamed) from None
        finally:
            self.units.remove(unit)

    def end(self) -> None:
        """End the process."""
        if self._actor is not None:
            with contextlib.suppress(Exception):
                self.pool.ray.kill(self._actor)

    def _new_actor(self) -> Any:
        threads = self.pool.threads
        # a thread for each unit in flight, and one for the next job
        remote = self.pool.ray.remote(
            num_cpus=threads, num_gpus=self.pool.gpus, max_concurrency=self.pool.in_flight + 1
        )(Host)
        environment = {"env_vars": {"OMP_NUM_THREADS": str(threads)}} if not self.pool.gpus else {}
        return remote.options(runtime_env=environment).remote()

    def _wait(self, reference: Any, is_over: Callable[[], bool]) -> bool:
        """Wait for a result. Return False if `is_over` returned True first."""
        waited = 0
        while not self.pool.ray.wait([reference], timeout=1)[0]:
            if is_over():
                return False
            waited += 1
            if waited == PATIENCE:
                wanted = f"{self.pool.gpus} GPU" if self.pool.gpus else f"{self.pool.threads} CPUs"
                print(f"{self.name} is not ready yet; it needs a node with {wanted} free", file=sys.stderr, flush=True)
        return True

    def _lose(self, actor: Any, error: Exception) -> None:
        """Forget a process that has ended. The first of several threads that see it tells the user."""
        with self._lock:
            if self._actor is actor:
                self._blamed = self.units[0]
                self._actor = self._ready = None
                print(f"{self.name}: {_reason(error)}; another takes its place", file=sys.stderr, flush=True)

    def _explain(self, error: Any) -> BareloopError:
        """The error that was raised in a worker, in one line."""
        cause = getattr(error, "cause", error)
        if isinstance(cause, UsageError):
            return UsageError(str(cause.args[0]))
        if isinstance(cause, BareloopError):
            return BareloopError(str(cause.args[0]))
        what = "out of memory" if is_out_of_memory(cause) else f"{type(cause).__name__}: {_first_line(cause)}"
        return BareloopError(f"{self.name}: {what}")


def load_ray(address: str | None) -> Any:
    """Import Ray, to be used with the cluster at this address. Raises `UsageError` if it is not installed."""
    token = {"RAY_AUTH_MODE": "token"} if address is not None and _has_token() else {}
    for name, value in (RAY_ENVIRONMENT | token).items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise UsageError(MISSING) from None
    return ray


def _has_token() -> bool:
    """Whether there is a token for clusters, which Ray makes for the first one by default, but does not use itself."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").exists()


def _reason(error: Exception) -> str:
    """Why a worker is gone, as far as Ray tells."""
    return "its node ran out of memory" if "OutOfMemory" in type(error).__name__ else "its process has ended"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _not_given_up(worker: RayWorker, error: Exception) -> None:
    raise AssertionError(f"{worker.name} asks no servers: {error}")
