"""Embeddings in the server: step by step, in turn with other requests and with the steps of the model's scheduler."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence

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


class EmbeddingQueue:
    """Requests for embeddings of one model. They take turns, a step of a bounded number of tokens each."""

    def __init__(self, llm: LLM, turn: Turn, limit: int | None, max_queue: int, observe: Callable[[int], None]) -> None:
        """`limit`: tokens of a step; None: the embedder's default. `observe`: told the tokens of each request."""
        self._llm = llm
        self._turn, self._limit, self._max_queue, self._observe = turn, limit, max_queue, observe
        self._order = asyncio.Lock()  # one step at a time, in the order of arrival: so they occupy one thread
        self.requests = 0

    async def compute(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, float]:
        """Token ids of texts -> their vectors, float32 [n, D], and the seconds from the first step on.

        Raises `QueueFullError` if too many requests wait.
        """
        if self.requests > self._max_queue:
            raise QueueFullError(f"{self._max_queue} requests for embeddings are waiting, as many as may; try later")
        self.requests += 1
        began = 0.0
        try:
            vectors = torch.empty(len(rows), self._llm.embedding_size)
            steps = self._llm.embedder.steps(rows, self._limit)
            while (step := await self._next(steps)) is not None:
                began = began or time.perf_counter()
                vectors[step[0]] = step[1]
        finally:
            self.requests -= 1
        self._observe(sum(map(len, rows)))
        return vectors, time.perf_counter() - began

    async def _next(self, steps: Iterator[Step]) -> Step | None:
        """Compute the next step in a thread; None: there is none. Another begins when this one has ended."""

        def compute() -> Step | None:
            with self._turn:
                return next(steps, None)

        await self._order.acquire()
        running = asyncio.ensure_future(asyncio.to_thread(compute))
        running.add_done_callback(lambda _: self._order.release())  # also if the client leaves before
        return await asyncio.shield(running)
