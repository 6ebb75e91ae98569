"""Questions to several servers at once: each works at blocks of its own, and what one leaves, others do."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.remote.errors import RemoteError

Q = TypeVar("Q")  # a question
S = TypeVar("S")  # a server
R = TypeVar("R")  # an answer


@dataclass(frozen=True)
class _GivenUp:
    """A server that is asked no more."""

    server: int
    error: RemoteError


class Dispatcher(Generic[S, Q, R]):
    """Hands the questions of blocks to servers, `concurrency` at a time to each.

    The questions of a block go to one server, so that it can share their beginning. Where no block is left, questions
    of other servers' blocks are taken, from the end. A server whose answer is a `RemoteError` is given up, and its
    questions go to the others.
    """

    def __init__(
        self,
        blocks: Iterator[Sequence[Q]],
        servers: Sequence[S],
        concurrency: int,
        answer: Callable[[S, Q], R],
        given_up: Callable[[S, RemoteError], None],
    ) -> None:
        """`given_up` is called in the thread that iterates, unless it was the last server."""
        self._blocks = blocks
        self._waiting: list[deque[Q]] = [deque() for _ in servers]
        self._alive = set(range(len(servers)))
        self._servers, self._answer, self._given_up = servers, answer, given_up
        self._shares: dict[int, float] = {}  # questions in flight: thread -> seconds so far
        self._last = 0.0  # time up to which they are counted
        self._changed = threading.Condition()
        self._stopped = False
        self._results: queue.SimpleQueue[tuple[R, float] | _GivenUp | BaseException | None] = queue.SimpleQueue()
        self._threads = [
            # an interrupt does not wait for an answer that may take minutes
            threading.Thread(target=self._work, args=(thread, thread % len(servers)), daemon=True)
            for thread in range(concurrency * len(servers))
        ]

    def __iter__(self) -> Iterator[tuple[R, float]]:
        """Yield answers as they come, each with its share of the time.

        Questions in flight at the same time share that time, so that the shares of all add up to the real time. Raises
        the `RemoteError` of the last server, and any other error of a question.
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
                    if self._alive:
                        self._given_up(self._servers[result.server], result.error)
                else:
                    yield result
            if failure is not None and (any(self._waiting) or next(self._blocks, None) is not None):
                raise failure.error
        finally:
            self.stop()

    def stop(self) -> None:
        """Hand out no further questions."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _work(self, thread: int, server: int) -> None:
        """Answer questions until none is left."""
        try:
            while (taken := self._take(thread, server)) is not None:
                (question,) = taken
                try:
                    answer = self._answer(self._servers[server], question)
                except RemoteError as error:
                    self._give_up(thread, server, question, error)
                else:
                    self._results.put((answer, self._end(thread)))
        except BaseException as error:  # for the thread that iterates
            self._results.put(error)
        finally:
            self._results.put(None)

    def _take(self, thread: int, server: int) -> tuple[Q] | None:
        """The next question for a server. Waits while questions are in flight that may come back."""
        with self._changed:
            while not self._stopped and server in self._alive:
                waiting = self._waiting[server]
                while not waiting and (block := next(self._blocks, None)) is not None:
                    waiting.extend(block)
                longest = max(self._waiting, key=len)
                if waiting or longest:
                    self._count()
                    self._shares[thread] = 0.0
                    return (waiting.popleft() if waiting else longest.pop(),)
                if not self._shares:
                    break
                self._changed.wait()
            return None

    def _end(self, thread: int) -> float:
        """Remove a question from those in flight. Return its share of the time."""
        with self._changed:
            self._count()
            self._changed.notify_all()
            return self._shares.pop(thread)

    def _give_up(self, thread: int, server: int, question: Q, error: RemoteError) -> None:
        """Put a question back, for other servers."""
        with self._changed:
            self._waiting[server].appendleft(question)
            if server in self._alive:
                self._alive.discard(server)
                self._results.put(_GivenUp(server, error))
        self._end(thread)

    def _count(self) -> None:
        """Divide the time that has passed between the questions in flight."""
        now = time.perf_counter()
        for thread in self._shares:
            self._shares[thread] += (now - self._last) / len(self._shares)
        self._last = now
