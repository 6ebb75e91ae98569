"""The resumable run of one task with one model: plan, compute, append.

Questions are planned in blocks of one subject, from all its questions. What is missing after a kill, `--limit` and
`--subjects` do not change which questions are computed together. So every record has the same bits, however often its
run was interrupted.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engine.cli.parser import model_options, printable
from engine.cli.progress import Progress
from engine.remote.errors import RemoteError
from engine.runtime.errors import BareloopError
from evals.harness.identity import make_header, run_path
from evals.harness.prompts import Render, TextEncoder, encoder
from evals.harness.task import BatchLimits, Item, Task
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
            self._llm = LLM.load(self.name, **model_options(self.options), copies=copies(self.options))
        return self._llm


def copies(options: Any) -> int:
    """Return how many processes on this machine load a model: as many as it has workers."""
    is_shared = getattr(options, "workers", None) is not None and options.ray_address is None
    return options.workers if is_shared else 1


def load_template(folder: Path, now: datetime | None = None, tokenizer: Tokenizer | None = None) -> Render:
    """Return the chat template of a model folder. `now` is the time for templates that print the date.

    `tokenizer`: the folder's, if it is loaded already.
    """
    from engine.text.chat_template import ChatTemplate
    from engine.text.tokenizer import Tokenizer

    return ChatTemplate.load(folder, tokenizer or Tokenizer.load(folder), now).render


class Blocks:
    """The blocks of a run that have a missing question. Iterating makes their prompts: pairs of (row, item)."""

    def __init__(self, task: Task, missing: set[Key], started: datetime, render: Render | None) -> None:
        """`started`: when the run was started, also if it was continued. `render`: the chat template at that time."""
        self.task, self.missing, self.started, self.render = task, missing, started, render

    def __iter__(self) -> Iterator[Sequence[tuple[Any, Item]]]:
        for rows in blocks_to_do(self.task, self.missing):
            yield [(row, self.task.make_item(row, self.render)) for row in rows]


class Answerer(Protocol):
    """What answers the questions of a task: a model that is computed here, servers, or workers."""

    path: Path  # of the run file
    header: dict[str, Any]
    max_length: int  # of a prompt and its answer, in tokens

    @property
    def tokenizer(self) -> TextEncoder | None:
        """The tokenizer of the prompts; None if they are sent as text."""
        ...

    def render(self, now: datetime | None = None) -> Render | None:
        """Return the chat template, at this time, if the flags ask for one."""
        ...

    def answer(self, blocks: Blocks) -> Iterator[Sequence[dict[str, Any]]]:
        """Yield the records of the missing questions in blocks, as soon as they are answered.

        The call itself does what has to be done before, such as loading the model.
        """
        ...

    def status(self) -> str:
        """What the line of progress says about who computes what; empty if that is clear."""
        ...


class LocalModel:
    """A model that is computed here. `get_model` is called only if a question is missing; it loads by default."""

    def __init__(
        self,
        task: Task,
        options: Any,
        name: str,
        counter: CycleCounter | None,
        get_model: Callable[[], LLM] | None = None,
    ) -> None:
        from engine.checkpoints.opening import open_model
        from engine.decoding.scoring import BATCH_TOKENS
        from engine.runtime.device import choose_device, dtype_name
        from engine.text.tokenizer import Tokenizer

        self.task, self.options, self.counter = task, options, counter
        self.get_model = get_model or ModelLoader(name, options)
        self.device = choose_device(options.device)
        names = name, options.dtype, options.allow_pickle, options.quant
        self.opened = opened = open_model(*names, self.device, options.adapter)
        self.folder = opened.folder
        self.tokenizer = Tokenizer.load(opened.folder)
        self.max_length = opened.config.max_position_embeddings
        kind = self.device.type
        batch_size = getattr(options, "batch_size", None) or BATCH_SIZE[kind]
        self.limits = BatchLimits(options.batch_tokens or BATCH_TOKENS[kind], batch_size)
        self.path = run_path(task, options, name, kind, dtype_name(opened.dtype), opened.quant)
        self.header = make_header(task, options, name, opened, self.device, *self.limits)

    def render(self, now: datetime | None = None) -> Render | None:
        return load_template(self.folder, now, self.tokenizer) if self.options.chat_template else None

    def status(self) -> str:
        return ""

    def answer(self, blocks: Blocks) -> Iterator[Sequence[dict[str, Any]]]:
        return self.compute(blocks, blocks.missing, len(blocks.missing))

    def compute(
        self, blocks: Iterable[Sequence[tuple[Any, Item]]], missing: set[Key], total: int
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the records of the missing questions. `total`: how many are missing in the whole run."""
        from engine import kernels
        from engine.runtime.clocks import Stopwatch
        from evals.harness.generation import generate_answers
        from evals.harness.likelihood import score_questions

        if self.device.type == "cpu":
            kernels.wait()  # the whole run is computed by the same kernels
        llm = self.get_model()
        if total >= BLOCK:  # packing costs more than it saves for fewer; the bits are the same
            llm.pack()
        compute = score_questions if self.task.generation is None else generate_answers
        return compute(self.task, llm, self.limits, blocks, missing, Stopwatch(llm.device, self.counter))


def evaluate(
    task: Task, options: Any, name: str, counter: CycleCounter, get_model: Callable[[], LLM] | None = None
) -> Path:
    """Evaluate the missing questions of a task with a model that is computed here. Return the path of the run file."""
    return answer_missing(task, options, LocalModel(task, options, name, counter, get_model))


def answer_missing(task: Task, options: Any, answerer: Answerer) -> Path:
    """Answer the missing questions of a task, and append their records. Return the path of the run file."""
    _check_window(task, answerer)
    with RunFile(answerer.path, answerer.header, options.fresh) as run:
        if options.verbose:
            show_records(task, task.select(run.records))
        missing = task.wanted - run.records.keys()
        try:
            if missing:
                started = datetime.fromisoformat(run.header["date"])  # a template that prints the date keeps this one
                blocks = Blocks(task, missing, started, answerer.render(started))
                _append(task, answerer, blocks, run, options.verbose)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted: {_saved(task, run)}; to continue: {command_to_continue()}") from None
        except RemoteError as error:
            if not task.wanted & run.records.keys():
                raise
            raise BareloopError(f"{error}; {_saved(task, run)}, and the same command continues") from error
        return answerer.path


def show_records(task: Task, records: Mapping[Key, Mapping[str, Any]]) -> None:
    """Print questions with the model's answers, for --verbose. Without the data nothing is printed."""
    for (subject, index), record in records.items() if task.questions else ():
        print(printable(task.show(task.questions[subject][index], record)), flush=True)


def _append(task: Task, answerer: Answerer, blocks: Blocks, run: RunFile, verbose: bool) -> None:
    """Append records as they come, with progress."""
    answers = answerer.answer(blocks)
    correct = [bool(record["correct"]) for key, record in run.records.items() if key in task.wanted]
    with Progress(task.name, len(task.wanted), len(correct)) as progress:
        for records in answers:
            run.append(records)
            correct += [record["correct"] for record in records]
            if verbose:
                show_records(task, {(record["subject"], record["index"]): record for record in records})
            accuracy = f"accuracy {100 * sum(correct) / len(correct):.1f} %"
            progress.advance(len(records), "; ".join(filter(None, (accuracy, answerer.status()))))


def _saved(task: Task, run: RunFile) -> str:
    return f"{len(task.wanted & run.records.keys())} of {len(task.wanted)} questions are saved in {run.path}"


def blocks_to_do(task: Task, missing: set[Key]) -> Iterator[Sequence[Any]]:
    """Yield the blocks of questions that have a missing one."""
    for subject, rows in task.questions.items():
        for first in range(0, len(rows), BLOCK):
            if not missing.isdisjoint((subject, row) for row in range(first, first + BLOCK)):
                yield rows[first : first + BLOCK]


def command_to_continue() -> str:
    """Return the command that continues this one: the same, but without --fresh."""
    module = sys.modules["__main__"].__spec__
    arguments = [argument for argument in sys.argv[1:] if argument != "--fresh"]
    return shlex.join(["python", "-m", module.name.removesuffix(".__main__") if module else sys.argv[0], *arguments])


def _check_window(task: Task, answerer: Answerer) -> None:
    """Refuse a model whose window is shorter than every question. Single long prompts are truncated and counted."""
    if answerer.tokenizer is None:
        return
    rows = (row for subject_rows in task.questions.values() for row in subject_rows[: task.limit])
    shortest = min(rows, key=lambda row: len(task.context_without_examples(row, None)))
    (ids,) = encoder(answerer.tokenizer)([task.context_without_examples(shortest, answerer.render())])
    new_tokens = task.generation.max_new_tokens if task.generation else 0
    if len(ids) + new_tokens > answerer.max_length:
        answer = f", its answer up to {new_tokens:,}" if new_tokens else ""
        raise BareloopError(
            f"the model's window holds {answerer.max_length:,} tokens, "
            f"and the shortest question alone has {len(ids):,}{answer}; use a model with a longer window"
        )
