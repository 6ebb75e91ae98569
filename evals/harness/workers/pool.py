"""Workers as Ray actors: one run's blocks go to them, records come back. What a worker that ends leaves, others do.

Ray starts the processes, on whichever node has room, and tells when one has ended. What they compute, and in which
order, is decided in the driver (evals.harness.dispatch); only the driver writes files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

from evals.harness.dispatch import Dispatcher
from evals.harness.workers import cluster
from evals.harness.workers.actor import Assignment, RayWorker
from evals.harness.workers.worker import Unit

IN_FLIGHT = 2  # units at a time for each worker: one that it computes, and one that it can begin at once
GRACE = 3.0  # seconds that threads have to end


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
        self.is_closing = False
        self.recorded: set[Hashable] = set()  # keys of the questions whose records have come
        self._folder: Path | None = None  # of Ray's sockets and logs
        self._work: Dispatcher[RayWorker, Unit, Any] | None = None
        self._told: set[str] = set()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start or join Ray, if that was not done before. Raises `BareloopError` if it fails."""
        if self.workers:
            return
        self.ray = cluster.load_ray(self.address)
        cores = max(self.count * self.threads, os.cpu_count() or 1)
        self._folder = cluster.start(self.ray, self.address, cores)
        if self.address is not None and not self.gpus:
            nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
            self.threads = cluster.threads_of_each(self.count, [int(node.get("CPU", 0)) for node in nodes])
        self.workers = [RayWorker(self, number) for number in range(1, self.count + 1)]

    def run(self, assignment: Assignment, units: Sequence[Unit]) -> Iterator[list[Any]]:
        """Compute units, the first ones first, and yield their records as they come."""
        self.recorded = set()
        for worker in self.workers:
            worker.assignment = assignment
        blocks = iter([[unit] for unit in units])
        self._work = Dispatcher(blocks, self.workers, self.in_flight, RayWorker.answer, prepare=RayWorker.prepare)
        for records, _ in self._work:
            yield [record for _, record in records]

    def status(self) -> str:
        """What the workers compute now, such as "worker 1: anatomy 0-63, worker 2: virology 64-127"."""
        parts = [f"{worker.name}: {units[0]}" for worker in self.workers if (units := worker.units_in_flight())]
        return ", ".join(parts if len(parts) <= 4 else [*parts[:3], f"{len(parts) - 3} more"])

    def tell(self, line: str, once: bool = False) -> None:
        """Print a line on stderr, unless the pool ends; with `once`, only the first time."""
        if self.is_closing or (once and line in self._told):
            return
        self._told.add(line)
        print(f"{line}\n", end="", file=sys.stderr, flush=True)  # in one write, as several threads tell

    def close(self) -> None:
        """End the workers, and Ray on this machine."""
        self.is_closing = True
        try:
            if self._work is not None:
                self._work.stop()
            for worker in self.workers:
                worker.end()
            if self._work is not None:
                self._work.join(GRACE)
        finally:
            self.workers = []
            if self.ray is not None:
                cluster.stop(self.ray, self._folder)
