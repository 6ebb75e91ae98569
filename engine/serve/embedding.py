"""Embeddings in the server: step by step, in turn with other requests and with the steps of the model's scheduler."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.decoding.scheduling.request import QueueFullError
from engine.llm import LLM

Step = tuple[list[int], Tensor]


class Turn:
    """A lock that two threads get in turn. Of a plain one a loop would take hold again before the other wakes up."""

    def __init__(self) -> None:
        self._next, self._held = threading.Lock(), threading.Lock()

    def __enter__(self) -> None:
        with self._next:
            self._held.acquire()

    def __exit__(self, *_: object) -> None:
        self._held.release()


class Computed(NamedTuple):
    """Vectors, float32 [n, D], the seconds before the first step began, and those until all vectors were there."""

    vectors: Tensor
    queue_seconds: float
    seconds: float


class EmbeddingQueue:
    """Requests for embeddings of one model. They take turns, a step of a bounded number of tokens each.

    A text that a decoder computes in several steps keeps others' texts waiting, as there is memory for one of its kind;
    the replies of the scheduler go on meanwhile.
    """

    def __init__(self, llm: LLM, turn: Turn, limit: int | None, max_queue: int, observe: Callable[[int], None]) -> None:
        """`limit`: tokens of a step; None: the embedder's default. `observe`: told the tokens of each request."""
        self._llm = llm
        self._turn, self._limit, self._max_queue, self._observe = turn, limit, max_queue, observe
        self._order = asyncio.Lock()  # in the order of arrival, so that they occupy one thread
        self.requests = 0

    async def compute(self, rows: Sequence[Sequence[int]]) -> Computed:
        """Token ids of texts -> their vectors, and how long they took. Raises `QueueFullError` if too many wait."""
        if self.requests > self._max_queue:
            raise QueueFullError(f"{self._max_queue} requests for embeddings are waiting, as many as may; try later")
        self.requests += 1
        arrived = time.perf_counter()
        began: list[float] = []
        left = threading.Event()
        try:
            vectors = torch.empty(len(rows), self._llm.embedding_size)
            steps = self._llm.embedder.steps(rows, self._limit)
            missing = len(rows)
            while missing:
                indices, some = await self._next(steps, began, left)
                vectors[indices] = some
                missing -= len(indices)
        finally:
            self.requests -= 1
            left.set()
        ended = time.perf_counter()
        self._observe(sum(map(len, rows)))
        first = began[0] if began else ended
        return Computed(vectors, first - arrived, ended - first)

    async def _next(self, steps: Generator[Step], began: list[float], left: threading.Event) -> Step:
        """Compute the next vectors in a thread, a step in each turn. Others begin when this has ended.

        The time of the first step is added to `began`. `left`: the client has gone, so a text is not completed.
        """

        def compute() -> Step:
            while True:
                with self._turn:
                    if not began:
                        began.append(time.perf_counter())
                    step = next(steps)
                    if left.is_set():
                        steps.close()
                if step[0] or left.is_set():
                    return step

        await self._order.acquire()
        running = asyncio.ensure_future(asyncio.to_thread(compute))
        running.add_done_callback(lambda _: self._order.release())  # also if the client leaves before
        return await asyncio.shield(running)
