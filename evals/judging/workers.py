"""--workers for answers that are judged: each worker holds conversations with its own copy of the model."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from evals.data.mt_bench import JudgedQuestion
from evals.harness.evaluate import BATCH_SIZE
from evals.harness.identity import computing_kind, lasting, place
from evals.harness.workers.actor import Assignment
from evals.harness.workers.driver import check_memory, make_pool, portable
from evals.harness.workers.pool import Pool
from evals.harness.workers.worker import COMPUTES_ON, Records, Unit
from evals.judging.settings import AFFORDABLE, make_settings
from evals.runs.judged import Answer

SPARE = 4  # questions that wait in a worker beside those that it answers, so that it is never idle


class AnswerJob:
    """Answers questions with one model, in a worker's process."""

    def __init__(
        self, cache: dict[str, Any], name: str, options: Any, settings: Mapping[str, Any], threads: int | None
    ) -> None:
        """`settings`: of the file of answers. `threads`: of the CPU, for this worker."""
        import torch

        from engine.runtime.device import choose_device
        from evals.judging.answers import open_conversations

        if threads is not None:
            torch.set_num_threads(threads)
        own = make_settings(name, options, settings["data"])
        self.identity = lasting(own) | {COMPUTES_ON: computing_kind(choose_device(options.device))}
        if "model" in cache:
            cache.pop("model").close()
        cache["model"] = opened = ExitStack()
        self.conversations = opened.enter_context(open_conversations(name, options, settings))

    def answer(self, units: Iterator[Unit]) -> Iterator[Records]:
        """Yield the answers to the questions of the units."""
        for answer in self.conversations.answers(unit.place for unit in units):
            yield [(answer.question_id, answer)]


class WorkerConversations:
    """Conversations that workers hold."""

    warnings: Sequence[str] = ()
    window: int | None = None  # each worker has its own

    def __init__(self, pool: Pool, assignment: Assignment) -> None:
        self.pool, self.assignment = pool, assignment

    def answers(self, questions: Iterable[JudgedQuestion]) -> Generator[Answer]:
        """Yield the answers as they come."""
        units = [Unit(f"question {question.id}", (question.id,), question) for question in questions]
        for answers in self.pool.run(self.assignment, units):
            yield from answers


@contextmanager
def open_workers(name: str, options: Any, settings: Mapping[str, Any]) -> Iterator[WorkerConversations]:
    """Start workers with a model, which end with the block. Raises `BareloopError` if memory is short for them."""
    from engine.checkpoints.opening import open_model
    from engine.runtime.device import choose_device

    device = choose_device(options.device)
    opened = open_model(name, options.dtype, options.allow_pickle, options.quant, device, options.adapter)
    check_memory(opened, device.type, options)
    rows = options.batch_size or BATCH_SIZE[device.type]
    with make_pool(options, device.type, rows + SPARE) as pool:
        pool.start()
        arguments = {
            "name": place(name),
            "options": portable(options, device.type),
            "settings": dict(settings),
            "threads": pool.threads if device.type == "cpu" else None,
        }
        identity = {key: value for key, value in lasting(settings).items() if key != AFFORDABLE}
        yield WorkerConversations(pool, Assignment("evals.judging.workers:AnswerJob", arguments, identity))
