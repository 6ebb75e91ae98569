"""Work for several workers at once: each has blocks of its own, and what one leaves, others do.

A worker is a server that is asked (evals.harness.remote) or a process that computes (evals.harness.workers).
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.remote.errors import RemoteError
from engine.runtime.errors import BareloopError

MAX_DEATHS = 3  # workers that may end while they compute one piece of work

Q = TypeVar("Q")  # a piece of work: a question, or a block of questions
W = TypeVar("W")  # a worker
R = TypeVar("R")  # a result


class WorkerLostError(BareloopError):
    """A worker has ended before its work was done. Another one takes its place. `has_begun`: whether it had begun."""

    def __init__(self, message: str, has_begun: bool = True) -> None:
        super().__init__(message)
        self.has_begun = has_begun


@dataclass
class _Job(Generic[Q]):
    """A piece of work, and how many workers have ended with it since its last result."""

    work: Q
    deaths: int = 0


@dataclass(frozen=True)
class _GivenUp:
    """A worker that gets no more work."""

    worker: int
    error: RemoteError


class Dispatcher(Generic[W, Q, R]):
    """Hands the work in blocks to workers, `concurrency` pieces at a time to each.

    The pieces of a block go to one worker, so that it can share their beginning. Where no block is left, pieces of
    other workers' blocks are taken, from the end.

    A worker that raises `RemoteError` is given up, and its work goes to the others. One that raises `WorkerLostError`
    goes on, and its piece of work goes back. From then on its worker gets nothing beside it, so that it is known what
    ends workers: after `MAX_DEATHS` ends without any result in between, the run ends.
    """

    def __init__(
        self,
        blocks: Iterator[Sequence[Q]],
        workers: Sequence[W],
        concurrency: int,
        do: Callable[[W, Q], Iterator[R]],
        given_up: Callable[[W, RemoteError], None] | None = None,
        prepare: Callable[[W, Callable[[], bool]], None] | None = None,
    ) -> None:
        """`do` yields the results of a piece of work as they come.

        `given_up` is called in the thread that iterates, unless it was the last worker. `prepare` is called before each
        piece of work, without holding any: it waits until the worker is ready, or its second argument returns True.
        """
        self._blocks = blocks
        self._waiting: list[deque[_Job[Q]]] = [deque() for _ in workers]
        self._alive = set(range(len(workers)))
        self._workers, self._do, self._given_up, self._prepare = workers, do, given_up, prepare
        self._running: Counter[int] = Counter()  # pieces of work in flight, by worker
        self._alone: set[int] = set()  # workers with a piece that must have nothing beside it
        self._shares: dict[int, float] = {}  # pieces in flight: thread -> seconds since the last result
        self._last = 0.0  # time up to which they are counted
        self._changed = threading.Condition()
        self._is_exhausted = self._stopped = False
        self._results: queue.SimpleQueue[tuple[R, float] | _GivenUp | BaseException | None] = queue.SimpleQueue()
        self._threads = [
            # an interrupt does not wait for a result that may take minutes
            threading.Thread(target=self._work, args=(thread, thread % len(workers)), daemon=True)
            for thread in range(concurrency * len(workers))
        ]

    def __iter__(self) -> Iterator[tuple[R, float]]:
        """Yield results as they come, each with its share of the time.

        Pieces in flight at the same time share that time, so that the shares of all add up to the real time. Raises
        the `RemoteError` of the last worker, and any other error of a piece of work.
        """
        for thread in self._threads:
            thread.start()
        running = len(self._threads)
        failure: _GivenUp | None = None
        try:
            while running:
                result = self._results.get()
                if result is None:
                    running -= 1
                elif isinstance(result, BaseException):
                    raise result
                elif isinstance(result, _GivenUp):
                    failure = result
                    if self._alive and self._given_up is not None:
                        self._given_up(self._workers[result.worker], result.error)
                else:
                    yield result
            if failure is not None and (any(self._waiting) or next(self._blocks, None) is not None):
                raise failure.error
        finally:
            self.stop()

    def stop(self) -> None:
        """Hand out no further work."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def join(self, seconds: float) -> None:
        """Wait until the threads have ended, but no longer than this."""
        end = time.monotonic() + seconds
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(end - time.monotonic(), 0.0))

    def _work(self, thread: int, worker: int) -> None:
        """Do one piece of work after the other until none is left."""
        try:
            while True:
                if self._prepare is not None:
                    self._prepare(self._workers[worker], self._is_over)
                job = self._take(thread, worker)
                if job is None:
                    return
                try:
                    for result in self._do(self._workers[worker], job.work):
                        job.deaths = 0
                        self._results.put((result, self._lap(thread)))
                except RemoteError as error:
                    self._give_up(worker, job, error)
                except WorkerLostError as error:
                    self._put_back(worker, job, error)
                finally:
                    self._end(thread, worker)
        except BaseException as error:  # for the thread that iterates
            self._results.put(error)
        finally:
            self._results.put(None)

    def _is_over(self) -> bool:
        """Whether no work is left, not even such that may come back."""
        with self._changed:
            return self._stopped or (self._is_exhausted and not self._shares and not any(self._waiting))

    def _take(self, thread: int, worker: int) -> _Job[Q] | None:
        """The next piece of work for a worker. Waits while pieces are in flight that may come back."""
        with self._changed:
            while not self._stopped and worker in self._alive:
                job = self._next(worker)
                if job is not None:
                    self._count()
                    self._shares[thread] = 0.0
                    self._running[worker] += 1
                    if job.deaths:
                        self._alone.add(worker)
                    return job
                if not self._shares:
                    break
                self._changed.wait()
            return None

    def _next(self, worker: int) -> _Job[Q] | None:
        """Remove a piece of work that this worker may begin now from those that wait."""
        if worker in self._alone:
            return None
        waiting = self._waiting[worker]
        while not waiting and not self._is_exhausted:
            block = next(self._blocks, None)
            self._is_exhausted = block is None
            waiting.extend(_Job(work) for work in block or ())
        source = waiting or max(self._waiting, key=len)
        if not source:
            return None
        end = 0 if source is waiting else -1
        if source[end].deaths and self._running[worker]:
            return None
        job = source[end]
        del source[end]
        return job

    def _lap(self, thread: int) -> float:
        """The share of the time of a piece in flight since its last result."""
        with self._changed:
            self._count()
            share, self._shares[thread] = self._shares[thread], 0.0
            return share

    def _end(self, thread: int, worker: int) -> None:
        """Remove a piece from those in flight."""
        with self._changed:
            self._count()
            del self._shares[thread]
            self._running[worker] -= 1
            if not self._running[worker]:
                self._alone.discard(worker)
            self._changed.notify_all()

    def _give_up(self, worker: int, job: _Job[Q], error: RemoteError) -> None:
        """Put a piece of work back, for other workers."""
        with self._changed:
            self._waiting[worker].appendleft(job)
            if worker in self._alive:
                self._alive.discard(worker)
                self._results.put(_GivenUp(worker, error))

    def _put_back(self, worker: int, job: _Job[Q], error: WorkerLostError) -> None:
        """Put a piece of work back, for this worker or another one. Raises `BareloopError` if it has ended too many."""
        job.deaths += error.has_begun
        if job.deaths == MAX_DEATHS:
            raise BareloopError(f"{MAX_DEATHS} workers in a row ended while they computed {job.work} ({error})")
        with self._changed:
            self._waiting[worker].appendleft(job)

    def _count(self) -> None:
        """Divide the time that has passed between the pieces in flight."""
        now = time.perf_counter()
        for thread in self._shares:
            self._shares[thread] += (now - self._last) / len(self._shares)
        self._last = now
