"""When requests are sent: by clients that wait for their answers, or at random times that do not depend on them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from random import Random

from bench.load.client import Client, Reads, read_answer
from bench.load.prompts import Prompts
from bench.load.records import Record, Setting

Sending = Coroutine[None, None, None]


@dataclass(frozen=True)
class Limit:
    """How long a setting is measured: a number of requests, or seconds in which requests are sent."""

    requests: int | None = None
    seconds: float | None = None


def arrivals(rate: float, seed: int, limit: Limit) -> Iterator[float]:
    """The times of a Poisson process of `rate` arrivals per second, in seconds from its start."""
    random = Random(f"{seed} arrivals")  # the same draws at every rate, so that only the pace differs
    now = 0.0
    for _ in itertools.count() if limit.requests is None else range(limit.requests):
        now += random.expovariate(rate)
        if limit.seconds is not None and now >= limit.seconds:
            return
        yield now


async def measure(
    client: Client,
    setting: Setting,
    limit: Limit,
    prompts: Prompts,
    numbers: Iterator[int],
    seed: int = 0,
    done: Callable[[], None] = lambda: None,
) -> None:
    """Measure a setting into its records. `numbers` are those of the prompts; `done` is called after each request.

    If it is cancelled, the records are those of the requests that were answered.
    """
    answers: list[tuple[Record, Reads]] = []

    async def send(due: float | None = None) -> None:
        answers.append(await client.send(prompts.prompt(next(numbers)), due))
        done()

    client.begin()
    try:
        if setting.kind == "rate":
            await open_loop(send, arrivals(setting.value, seed, limit), client)
        else:
            await closed_loop(send, int(setting.value), limit, client)
    finally:
        for record, reads in answers:
            read_answer(record, reads)
            setting.records.append(record)


async def closed_loop(send: Callable[[], Sending], clients: int, limit: Limit, client: Client) -> None:
    """So many clients; each sends its next request when its last one is answered."""
    tickets = iter(itertools.count() if limit.requests is None else range(limit.requests))

    async def one() -> None:
        for _ in tickets:
            if limit.seconds is not None and client.now() >= limit.seconds:
                return
            await send()

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(one())


async def open_loop(send: Callable[[float], Sending], times: Iterator[float], client: Client) -> None:
    """Send a request at each of these times, whatever became of the others; then wait for all answers."""
    async with asyncio.TaskGroup() as group:
        for due in times:
            await client.clock.sleep(max(0.0, due - client.now()))
            group.create_task(send(due))
