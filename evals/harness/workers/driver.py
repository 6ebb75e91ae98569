"""--workers: a benchmark's run on several devices, with the records that one of them would write."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli.parser import Parser
from engine.runtime.errors import BareloopError, UsageError
from evals.harness.evaluate import Blocks, LocalModel, answer_missing
from evals.harness.identity import lasting, place
from evals.harness.task import Task
from evals.harness.workers.actor import Assignment
from evals.harness.workers.benchmark import units_to_do
from evals.harness.workers.cluster import load_ray
from evals.harness.workers.pool import IN_FLIGHT, Pool

if TYPE_CHECKING:
    from engine.checkpoints.opening import Opened
    from engine.runtime.cycles import CycleCounter
    from evals.harness.prompts import Render

PROCESS_BYTES = 500_000_000  # of a worker beside its weights: Python, torch, keys and values of a batch


def add_worker_options(parser: Parser) -> None:
    """Add the flags for runs on several devices."""
    workers = parser.add_argument_group("workers")
    workers.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="compute in N processes, one a GPU, or N that share the CPU's cores (extra: ray)",
    )
    workers.add_argument(
        "--ray-address", metavar="ADDRESS", help="of a Ray cluster for the workers, or auto (default: this machine)"
    )
    workers.add_argument(
        "--mixed-devices", action="store_true", help="allow workers of different kinds, whose last bits may differ"
    )


def check_worker_options(options: Any) -> None:
    """Raise `UsageError` for invalid flags, before anything is loaded. Some programs have none of them."""
    if getattr(options, "workers", None) is None:
        for name in ("ray_address", "mixed_devices"):
            if getattr(options, name, None):
                raise UsageError(f"--{name.replace('_', '-')} is for workers; add --workers N")
        return
    if options.workers < 1:
        raise UsageError(f"--workers {options.workers}: use 1 or more")
    if getattr(options, "url", None):
        raise UsageError("--workers: the servers of --url are the workers; name several with --url URL URL")
    if ":" in options.device:
        raise UsageError(f"--device {options.device}: with --workers each worker has its own; use cuda or cpu")
    if not (options.rescore or getattr(options, "requests_only", None)):
        load_ray(options.ray_address)


def open_pools(program: str, options: Any) -> AbstractContextManager[WorkerPools | None]:
    """The workers of a program, which end with the block; None without --workers."""
    return nullcontext() if options.workers is None else WorkerPools(program, options)


def make_pool(options: Any, kind: str, in_flight: int = IN_FLIGHT) -> Pool:
    """The workers of the flags, on this kind of device. Raises `UsageError` if this machine has too few of it."""
    import torch

    devices = torch.cuda.device_count() or 1
    if options.ray_address is None and kind != "cpu" and options.workers > devices:
        raise UsageError(
            f"--workers {options.workers}: this machine has {devices} of {kind}; use fewer, or --device cpu"
        )
    cores, gpus = torch.get_num_threads(), int(kind == "cuda")
    return Pool(options.workers, options.ray_address, gpus, cores, options.mixed_devices, in_flight)


class WorkerPools:
    """The workers of a program, made for the device of its first model."""

    def __init__(self, program: str, options: Any) -> None:
        """`program`: the name of the benchmark's program, from which the workers load its tasks."""
        self.program, self.options = program, options
        self._pool: Pool | None = None

    def __enter__(self) -> WorkerPools:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.close()

    def evaluate(self, task: Task, number: int, model: str, counter: CycleCounter) -> Path:
        """Evaluate the missing questions of the program's task of this number. Return the path of the run file."""
        local = LocalModel(task, self.options, model, counter)
        return answer_missing(task, self.options, WorkerModel(self, local, model, number))

    def pool(self, local: LocalModel) -> Pool:
        """The workers, started for this model if they were not for another one."""
        if self._pool is None:
            kind = local.device.type
            check_memory(local.opened, kind, self.options)
            self._pool = make_pool(self.options, kind)
        self._pool.start()
        return self._pool


class WorkerModel:
    """A model that is computed by workers. `local` is the same model here, which is not loaded."""

    def __init__(self, pools: WorkerPools, local: LocalModel, model: str, number: int) -> None:
        self.pools, self.local, self.model, self.number = pools, local, model, number
        self.path, self.max_length, self.tokenizer = local.path, local.max_length, local.tokenizer
        self.header = local.header | {"workers": pools.options.workers}
        self._pool: Pool | None = None

    def render(self, now: datetime | None = None) -> Render | None:
        return self.local.render(now)

    def status(self) -> str:
        return "" if self._pool is None else self._pool.status()

    def answer(self, blocks: Blocks) -> Iterator[Sequence[dict[str, Any]]]:
        pool = self._pool = self.pools.pool(self.local)
        arguments = {
            "program": self.pools.program,
            "options": portable(self.pools.options, self.local.device.type),
            "number": self.number,
            "model": place(self.model),
            "date": blocks.started.isoformat(),
            "questions": len(blocks.missing),
            "threads": pool.threads if self.local.device.type == "cpu" else None,
        }
        job = "evals.harness.workers.benchmark:BenchmarkJob"
        assignment = Assignment(job, arguments, lasting(self.local.header))
        records = pool.run(assignment, units_to_do(blocks.task, blocks.missing))
        return ([self._share_time(record) for record in some] for some in records)

    def _share_time(self, record: dict[str, Any]) -> dict[str, Any]:
        """Divide real seconds by the number of workers, which pass at the same time: their sum is that of the run."""
        times, workers = record["times"], self.pools.options.workers
        shared = {name: round(times[name] / workers, 6) for name in ("real", "prefill", "decode") if name in times}
        return {**record, "times": times | shared}


def portable(options: Any, kind: str) -> Namespace:
    """Return the flags for workers: with absolute paths, and with the device that was chosen here."""
    paths = {name: getattr(options, name, None) for name in ("data", "adapter")}
    return Namespace(
        **{**vars(options), "device": kind, **{name: path and place(path) for name, path in paths.items()}}
    )


def check_memory(opened: Opened, kind: str, options: Any) -> None:
    """Raise `BareloopError` if this machine's memory is too small for so many copies of a model's weights."""
    import torch

    from engine.checkpoints.loading import mappable, plan_loading
    from engine.runtime.memory import free_memory

    if options.ray_address is not None or kind != "cpu":
        return
    device = torch.device(kind)
    free = free_memory(device)
    shared = mappable(opened, plan_loading(opened), device) if opened.adapter is None else set()
    once = sum(parameter.nbytes for name, parameter in opened.model.named_parameters() if name in shared)
    each = opened.nbytes - once + PROCESS_BYTES
    if free is None or options.workers * each + once <= free:
        return
    fitting = (free - once) // each
    hint = f"use --workers {fitting}, or " if fitting > 0 else "use "
    raise BareloopError(
        f"--workers {options.workers}: their models take {(options.workers * each + once) / 1e9:.1f} GB and "
        f"{free / 1e9:.1f} GB are free; {hint}a smaller weight format (--quant)"
    )
