"""The blocks of a benchmark's run, for workers: which there are, and how a worker answers them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from evals.harness.evaluate import BLOCK, LocalModel, ModelLoader, blocks_to_do
from evals.harness.identity import computing_kind, lasting
from evals.harness.task import Task
from evals.harness.workers.worker import COMPUTES_ON, Records, Unit
from evals.runs.run_file import Key


def units_to_do(task: Task, missing: set[Key]) -> list[Unit]:
    """The blocks that have a missing question, the longest first, so that no worker begins a long one at the end."""
    costs: dict[Unit, int] = {}
    for rows in blocks_to_do(task, missing):
        items = [(row.subject, row.index) for row in rows]
        (subject, first), (_, last) = items[0], items[-1]
        unit = Unit(f"{subject} {first}-{last}", tuple(key for key in items if key in missing), (subject, first))
        costs[unit] = sum(len(task.context_without_examples(row, None)) for row in rows)
    return sorted(costs, key=lambda unit: -costs[unit])


class BenchmarkJob:
    """Answers blocks of one task with one model, in a worker's process."""

    def __init__(
        self,
        cache: dict[str, Any],
        program: str,
        options: Any,
        number: int,
        model: str,
        date: str,
        questions: int,
        threads: int | None,
    ) -> None:
        """`program`, `options`, `number`: the tasks that a benchmark's program loads, and which of them.

        `date`: the start of the run (ISO 8601). `questions`: how many are missing in the whole run. `threads`: of the
        CPU, for this worker.
        """
        import torch

        from engine.runtime.memory import release_freed_memory

        if threads is not None:
            torch.set_num_threads(threads)
        self.task: Task = importlib.import_module(f"evals.{program}").load_tasks(options)[number]
        if cache.get("model") != model:
            cache.clear()
            release_freed_memory()
            cache |= {"model": model, "get_model": ModelLoader(model, options)}
        self.local = LocalModel(self.task, options, model, None, cache["get_model"])
        self.render = self.local.render(datetime.fromisoformat(date))
        self.questions = questions
        self.identity = lasting(self.local.header) | {COMPUTES_ON: computing_kind(self.local.device)}

    def answer(self, units: Iterator[Unit]) -> Iterator[Records]:
        """Yield the records of the questions of the units."""
        from engine.runtime.cycles import CycleCounter

        self.local.counter = CycleCounter()  # of this thread, in which all is computed
        missing: set[Any] = set()

        def blocks() -> Iterator[Sequence[tuple[Any, Any]]]:
            for unit in units:
                missing.update(unit.keys)
                subject, first = unit.place
                rows = self.task.questions[subject][first : first + BLOCK]
                yield [(row, self.task.make_item(row, self.render)) for row in rows]

        for records in self.local.compute(blocks(), missing, self.questions):
            yield [((record["subject"], record["index"]), record) for record in records]
