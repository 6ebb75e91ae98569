"""64 workers that end once an hour, without models: how busy they are, and that nothing is lost.

    pytest --benchmark-only bench/test_workers.py

The driver is the real one (evals.harness.dispatch); workers sleep in place of computing, two hundred times faster: a
run of an hour takes 18 seconds. Drawn, seeded: the time of a block (lognormal, 60 s in the mean, with results in eight
parts), and when a worker ends (once an hour in the mean). Another one takes 30 s to begin, as with a model of some
gigabytes, and computes the part again in which the first one ended.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from evals.harness.dispatch import Dispatcher, WorkerLostError
from evals.harness.workers.pool import IN_FLIGHT

WORKERS, HOURS = 64, 1
BLOCK_SECONDS, SPREAD = 60.0, 0.7  # mean, and standard deviation of the logarithm
PARTS = 8  # of a block, each with results
LIFE_SECONDS, START_SECONDS = 3_600.0, 30.0
SPEED = 200  # simulated seconds in a real one
SEED = 0


class Part(NamedTuple):
    """Results of a part of a block."""

    block: int
    number: int


@dataclass
class Block:
    """A block of questions, and how many of its parts are recorded."""

    number: int
    seconds: float
    recorded: int = 0


class Sleeper:
    """A worker that sleeps for the time of a block, and ends now and then."""

    def __init__(self, number: int) -> None:
        self.random = Random(f"{SEED} {number}")
        self.life = 0.0  # simulated seconds of work until it ends
        self.ends, self.has_begun = 0, False
        self._computing, self._starting = threading.Lock(), threading.Lock()

    def prepare(self, is_over: Callable[[], bool]) -> None:
        """Begin if it has ended."""
        with self._starting:
            if not self.has_begun and not is_over():
                time.sleep(START_SECONDS / SPEED if self.ends else 0.0)  # all begin at the same time
                self.life, self.has_begun = self.random.expovariate(1 / LIFE_SECONDS), True

    def answer(self, block: Block) -> Iterator[Part]:
        """Compute what is left of one block at a time. One that waits when the worker ends goes back, too."""
        ends = self.ends
        with self._computing:
            if self.ends > ends or not self.has_begun:
                raise WorkerLostError("it has ended", has_begun=False)
            while block.recorded < PARTS:
                seconds = block.seconds / PARTS
                time.sleep(min(seconds, self.life) / SPEED)
                self.life -= seconds
                if self.life <= 0:
                    self.ends, self.has_begun = self.ends + 1, False
                    raise WorkerLostError("it has ended")
                block.recorded += 1
                yield Part(block.number, block.recorded)


def simulate() -> dict[str, Any]:
    """Run all blocks. Return the share of the workers' time that was of use, and how often workers ended."""
    random = Random(SEED)
    mean = math.log(BLOCK_SECONDS) - SPREAD**2 / 2
    count = round(WORKERS * HOURS * 3_600 / BLOCK_SECONDS)
    blocks = [Block(number, random.lognormvariate(mean, SPREAD)) for number in range(count)]
    blocks.sort(key=lambda block: -block.seconds)
    sleepers = [Sleeper(number) for number in range(WORKERS)]
    work = iter([[block] for block in blocks])
    start = time.perf_counter()
    run = Dispatcher(work, sleepers, IN_FLIGHT, Sleeper.answer, lambda *_: None, Sleeper.prepare)
    done = Counter(part for part, _ in run)
    seconds = SPEED * (time.perf_counter() - start)
    wanted = Counter(Part(block.number, part) for block in blocks for part in range(1, PARTS + 1))
    assert done == wanted, "everything is computed, and nothing twice"
    return {
        "workers": WORKERS,
        "blocks": count,
        "ends": sum(sleeper.ends for sleeper in sleepers),
        "hours": round(seconds / 3_600, 3),
        "utilisation": round(sum(block.seconds for block in blocks) / (WORKERS * seconds), 3),
    }


def test_utilisation_of_64_workers(benchmark: Any) -> None:
    """At least 90 % of the workers' time is of use."""
    benchmark.extra_info |= benchmark.pedantic(simulate, rounds=1)
