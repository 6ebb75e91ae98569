"""The resumable run: plan, compute, append. What is asked is a `Task`; each benchmark's file makes one.

Questions are planned in blocks of a subject, from all its questions: neither what is left after a kill, nor
`--limit` or `--subjects`, changes which questions are computed together. So every record has the same bits
however its run was cut up.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli.parser import model_options, printable
from engine.cli.progress import Progress
from engine.runtime.errors import BareloopError
from evals.harness.identity import make_header, run_file
from evals.harness.prompts import Render, encoder
from evals.harness.task import Task
from evals.runs.run_file import Key, RunFile

if TYPE_CHECKING:
    from engine import LLM
    from engine.runtime.cycles import CycleCounter
    from engine.text.tokenizer import Tokenizer

BLOCK = 64  # questions of a subject that are planned together
BATCH_SIZE = {"cpu": 8, "cuda": 32, "mps": 8}  # questions that are answered side by side, in the model's own words


def renderer(folder: Path, now: datetime | None = None) -> Render:
    """The chat template of a model folder."""
    from engine.text.chat_template import ChatTemplate
    from engine.text.tokenizer import Tokenizer

    return ChatTemplate.load(folder, Tokenizer.load(folder), now).render


def evaluate(task: Task, options: Any, name: str, counter: CycleCounter, llm: LLM | None = None) -> Path:
    """Score what is not yet scored of a task with one model, which is loaded unless it is given; -> the run file."""
    from engine.checkpoints.opening import open_model
    from engine.decoding.scoring import BATCH_TOKENS
    from engine.runtime.device import choose_device, dtype_name
    from engine.runtime.memory import reset_peak_memory
    from engine.text.tokenizer import Tokenizer

    device = choose_device(options.device)
    opened = open_model(name, options.dtype, options.allow_pickle, options.quant, device)
    tokenizer = Tokenizer.load(opened.folder)
    batch_tokens = options.batch_tokens or BATCH_TOKENS[device.type]
    batch_size = getattr(options, "batch_size", None) or BATCH_SIZE[device.type]
    path = run_file(task, options, name, device.type, dtype_name(opened.dtype), opened.quant)
    header = make_header(task, options, name, opened, device, batch_tokens, batch_size)
    render = renderer(opened.folder) if options.chat_template else None
    _check_window(task, render, tokenizer, opened.config.max_position_embeddings)
    with RunFile(path, header, options.fresh) as run:
        if options.verbose:
            show_all(task, task.select(run.records))
        missing = task.wanted - run.records.keys()
        try:
            if missing:
                from engine import LLM, kernels

                if render is not None:  # a template that prints the date goes on with that of the first sitting
                    render = renderer(opened.folder, datetime.fromisoformat(run.header["date"]))
                if device.type == "cpu":
                    kernels.wait()  # so that a run is computed in one way, however it is cut up
                if llm is None:
                    reset_peak_memory(device)
                    llm = LLM.load(name, **model_options(options))
                batch = batch_tokens, batch_size
                _compute(task, llm, batch, render, run, missing, options.verbose, counter)
        except KeyboardInterrupt:
            done = len(task.wanted & run.records.keys())
            raise KeyboardInterrupt(
                f"interrupted: {done} of {len(task.wanted)} questions are saved in {path}; to go on: {command()}"
            ) from None
        return path


def show_all(task: Task, records: Mapping[Key, Mapping[str, Any]]) -> None:
    """--verbose: questions with what the model made of them."""
    for (subject, index), own in records.items() if task.questions else ():
        print(printable(task.show(task.questions[subject][index], own)), flush=True)


def _compute(
    task: Task,
    llm: LLM,
    batch: tuple[int, int],
    render: Render | None,
    run: RunFile,
    missing: set[Key],
    verbose: bool,
    counter: CycleCounter,
) -> None:
    """Compute every batch that holds a missing question, and append what is missing of it."""
    from engine.runtime.clocks import Stopwatch
    from evals.harness.generation import write
    from evals.harness.likelihood import score

    if len(missing) >= BLOCK:  # for fewer it costs more than it saves; the bits are the same
        llm.pack()
    watch = Stopwatch(llm.device, counter)
    told = [bool(record["correct"]) for key, record in run.records.items() if key in task.wanted]
    asked = ([(row, task.item(row, render)) for row in rows] for rows in blocks(task.questions, missing))
    compute = score if task.writing is None else write
    with Progress(task.name, len(task.wanted), len(told)) as progress:
        for records in compute(task, llm, batch, asked, missing, watch):
            run.append(records)
            told += [own["correct"] for own in records]
            if verbose:
                show_all(task, {(own["subject"], own["index"]): own for own in records})
            progress.advance(len(records), f"accuracy {100 * sum(told) / len(told):.1f} %")


def blocks(questions: Mapping[str, Sequence[Any]], missing: set[Key]) -> Iterator[Sequence[Any]]:
    """The blocks of questions in which one is missing."""
    for subject, rows in questions.items():
        for first in range(0, len(rows), BLOCK):
            if not missing.isdisjoint((subject, row) for row in range(first, first + BLOCK)):
                yield rows[first : first + BLOCK]


def command() -> str:
    """What to type to go on: the same again, but never --fresh."""
    module = sys.modules["__main__"].__spec__
    words = [word for word in sys.argv[1:] if word != "--fresh"]
    return shlex.join(["python", "-m", module.name.removesuffix(".__main__") if module else sys.argv[0], *words])


def _check_window(task: Task, render: Render | None, tokenizer: Tokenizer, max_length: int) -> None:
    """Refuse a model that cannot see a single question whole. Where it is only some, they are cut and counted."""
    rows = (row for listed in task.questions.values() for row in listed[: task.limit])
    shortest = min(rows, key=lambda row: len(task.alone(row, None)))
    (ids,) = encoder(tokenizer)([task.alone(shortest, render)])
    room = task.writing.max_new_tokens if task.writing else 0
    if len(ids) + room > max_length:
        answer = f", its answer up to {room:,}" if room else ""
        raise BareloopError(
            f"the model's window holds {max_length:,} tokens, "
            f"and the shortest question alone has {len(ids):,}{answer}; use a model with a longer window"
        )
