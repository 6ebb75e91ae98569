"""The resumable run of one task with one model: plan, compute, append.

Questions are planned in blocks of one subject, from all its questions. What is missing after a kill, `--limit` and
`--subjects` do not change which questions are computed together. So every record has the same bits, however often its
run was interrupted.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli.parser import model_options, printable
from engine.cli.progress import Progress
from engine.runtime.errors import BareloopError
from evals.harness.identity import make_header, run_path
from evals.harness.prompts import Render, encoder
from evals.harness.task import BatchLimits, Task
from evals.runs.run_file import Key, RunFile

if TYPE_CHECKING:
    from engine import LLM
    from engine.runtime.cycles import CycleCounter
    from engine.text.tokenizer import Tokenizer

BLOCK = 64  # questions of a subject that are planned together
BATCH_SIZE = {"cpu": 16, "cuda": 32, "mps": 16}  # default number of answers generated in parallel


class ModelLoader:
    """Load a model at the first call, and return it at every call. Each call resets the measured peak memory."""

    def __init__(self, name: str, options: Any) -> None:
        self.name, self.options = name, options
        self._llm: LLM | None = None

    def __call__(self) -> LLM:
        from engine import LLM
        from engine.runtime.device import choose_device
        from engine.runtime.memory import reset_peak_memory

        reset_peak_memory(choose_device(self.options.device))
        if self._llm is None:
            self._llm = LLM.load(self.name, **model_options(self.options))
        return self._llm


def load_template(folder: Path, now: datetime | None = None, tokenizer: Tokenizer | None = None) -> Render:
    """Return the chat template of a model folder. `now` is the time for templates that print the date.

    `tokenizer`: the folder's, if it is loaded already.
    """
    from engine.text.chat_template import ChatTemplate
    from engine.text.tokenizer import Tokenizer

    return ChatTemplate.load(folder, tokenizer or Tokenizer.load(folder), now).render


def evaluate(
    task: Task, options: Any, name: str, counter: CycleCounter, get_model: Callable[[], LLM] | None = None
) -> Path:
    """Evaluate the missing questions of a task with one model. Return the path of the run file.

    `get_model` is called only if a question is missing; without it, the model is loaded.
    """
    from engine.checkpoints.opening import open_model
    from engine.decoding.scoring import BATCH_TOKENS
    from engine.runtime.device import choose_device, dtype_name
    from engine.text.tokenizer import Tokenizer

    device = choose_device(options.device)
    opened = open_model(name, options.dtype, options.allow_pickle, options.quant, device)
    tokenizer = Tokenizer.load(opened.folder)
    limits = BatchLimits(
        options.batch_tokens or BATCH_TOKENS[device.type],
        getattr(options, "batch_size", None) or BATCH_SIZE[device.type],
    )
    path = run_path(task, options, name, device.type, dtype_name(opened.dtype), opened.quant)
    header = make_header(task, options, name, opened, device, limits.tokens, limits.answers)
    render = load_template(opened.folder, tokenizer=tokenizer) if options.chat_template else None
    _check_window(task, render, tokenizer, opened.config.max_position_embeddings)
    with RunFile(path, header, options.fresh) as run:
        if options.verbose:
            show_records(task, task.select(run.records))
        missing = task.wanted - run.records.keys()
        try:
            if missing:
                from engine import kernels

                if render is not None:  # a template that prints the date keeps that of the first session
                    render = load_template(opened.folder, datetime.fromisoformat(run.header["date"]), tokenizer)
                if device.type == "cpu":
                    kernels.wait()  # the whole run is computed by the same kernels
                llm = (get_model or ModelLoader(name, options))()
                _compute(task, llm, limits, render, run, missing, options.verbose, counter)
        except KeyboardInterrupt:
            done = len(task.wanted & run.records.keys())
            raise KeyboardInterrupt(
                f"interrupted: {done} of {len(task.wanted)} questions are saved in {path}; to continue: "
                f"{command_to_continue()}"
            ) from None
        return path


def show_records(task: Task, records: Mapping[Key, Mapping[str, Any]]) -> None:
    """Print questions with the model's answers, for --verbose. Without the data nothing is printed."""
    for (subject, index), record in records.items() if task.questions else ():
        print(printable(task.show(task.questions[subject][index], record)), flush=True)


def _compute(
    task: Task,
    llm: LLM,
    limits: BatchLimits,
    render: Render | None,
    run: RunFile,
    missing: set[Key],
    verbose: bool,
    counter: CycleCounter,
) -> None:
    """Compute every batch that has a missing question, and append the records of the missing ones."""
    from engine.runtime.clocks import Stopwatch
    from evals.harness.generation import generate_answers
    from evals.harness.likelihood import score_questions

    if len(missing) >= BLOCK:  # packing costs more than it saves for fewer; the bits are the same
        llm.pack()
    watch = Stopwatch(llm.device, counter)
    correct = [bool(record["correct"]) for key, record in run.records.items() if key in task.wanted]
    blocks = ([(row, task.make_item(row, render)) for row in rows] for rows in blocks_to_do(task.questions, missing))
    compute = score_questions if task.generation is None else generate_answers
    with Progress(task.name, len(task.wanted), len(correct)) as progress:
        for records in compute(task, llm, limits, blocks, missing, watch):
            run.append(records)
            correct += [record["correct"] for record in records]
            if verbose:
                show_records(task, {(record["subject"], record["index"]): record for record in records})
            progress.advance(len(records), f"accuracy {100 * sum(correct) / len(correct):.1f} %")


def blocks_to_do(questions: Mapping[str, Sequence[Any]], missing: set[Key]) -> Iterator[Sequence[Any]]:
    """Yield the blocks of questions that have a missing one."""
    for subject, rows in questions.items():
        for first in range(0, len(rows), BLOCK):
            if not missing.isdisjoint((subject, row) for row in range(first, first + BLOCK)):
                yield rows[first : first + BLOCK]


def command_to_continue() -> str:
    """Return the command that continues this one: the same, but without --fresh."""
    module = sys.modules["__main__"].__spec__
    arguments = [argument for argument in sys.argv[1:] if argument != "--fresh"]
    return shlex.join(["python", "-m", module.name.removesuffix(".__main__") if module else sys.argv[0], *arguments])


def _check_window(task: Task, render: Render | None, tokenizer: Tokenizer, max_length: int) -> None:
    """Refuse a model whose window is shorter than every question. Single long prompts are truncated and counted."""
    rows = (row for subject_rows in task.questions.values() for row in subject_rows[: task.limit])
    shortest = min(rows, key=lambda row: len(task.context_without_examples(row, None)))
    (ids,) = encoder(tokenizer)([task.context_without_examples(shortest, render)])
    new_tokens = task.generation.max_new_tokens if task.generation else 0
    if len(ids) + new_tokens > max_length:
        answer = f", its answer up to {new_tokens:,}" if new_tokens else ""
        raise BareloopError(
            f"the model's window holds {max_length:,} tokens, "
            f"and the shortest question alone has {len(ids):,}{answer}; use a model with a longer window"
        )
