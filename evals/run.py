"""python -m evals run: every benchmark by every model by every weight format, each cell in a process of its own.

A cell that is done is not computed again, one that fails does not end the rest: the same command goes on.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli.parser import Parser, choose_model
from engine.cli.progress import duration
from engine.quant import canonical
from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import local_path, write_atomic
from evals.data.catalogue import BENCHMARKS
from evals.harness.program import check_run_options, refuse_shared_folders
from evals.harness.subprocess_call import apart
from evals.runs.collection import format_rank
from evals.runs.measurements import markdown_table
from evals.runs.summary import run_name

if TYPE_CHECKING:
    from evals.harness.task import Task
    from evals.runs.summary import Summary


@dataclass(frozen=True)
class Cell:
    """One run: a benchmark, a model, a weight format."""

    task: str
    model: str
    quant: str

    @property
    def row(self) -> str:
        """Whose it is, in the table."""
        return run_name(self.model, self.quant)

    def __str__(self) -> str:
        return f"{self.task}, {self.row}"


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m evals run", "Score models on benchmarks, in weight formats; go on where it was left.")

    def add_list(name: str, metavar: str, told: str, **more: Any) -> None:
        result.add_argument(name, action="extend", nargs="+", metavar=metavar, help=told, **more)

    known = ", ".join(BENCHMARKS)
    add_list("--tasks", "TASK", f"{known} (default: mmlu)", choices=tuple(BENCHMARKS))
    result.add_model_options(without=("quant",))
    add_list("--quant", "FORMAT", "of the weights: none, int8, int4, nf4 … (default: none)")
    result.add_argument(
        "--data", metavar="FOLDER", help="with a folder of data for each task, by its name (default: the hub's)"
    )
    add_list("--subjects", "SUBJECT", "of MMLU: names, groups, or all")
    result.add_argument("--shots", type=int, metavar="N", help="solved examples (default: by benchmark)")
    result.add_argument("--limit", type=int, metavar="N", help="questions per subject (default: all)")
    result.add_argument("--chat-template", action="store_true", help="ask through the models' chat templates")
    result.add_argument("--batch-tokens", type=int, metavar="N", help="tokens computed at once")
    result.add_argument("--batch-size", type=int, metavar="N", help="answers that are written side by side")
    result.add_argument("--output-dir", default="results", metavar="FOLDER", help="default: results")
    result.add_argument("--save-question-data", action="store_true", help="write questions and answers beside each run")
    result.add_argument("--fresh", action="store_true", help="begin anew; earlier runs are put aside, not deleted")
    result.set_defaults(single_turn=False, rescore=False)
    return result


def main(options: Any) -> None:
    """Cell by cell, then the table of them all."""
    check_run_options(options)
    choose_model(options)
    tasks, models = list(dict.fromkeys(options.tasks or ["mmlu"])), list(dict.fromkeys(options.model))
    options.model = models
    refuse_shared_folders(options)
    quants = sorted({canonical(name) for name in options.quant or ["none"]}, key=format_rank)
    cells = [Cell(*own) for own in product(tasks, models, quants)]
    words = {cell: flags(options, cell) for cell in cells}
    done: dict[Cell, Summary] = {}
    failed: dict[Cell, str] = {}
    for number, cell in enumerate(cells, 1):
        print(f"[{number}/{len(cells)}] {cell}", file=sys.stderr, flush=True)
        try:
            done[cell] = apart(score, cell.task, words[cell], debug=options.debug)
        except KeyboardInterrupt:
            from evals.harness.evaluate import command

            told = f"interrupted in cell {number} of {len(cells)}; all answers are saved; to go on: {command()}"
            raise KeyboardInterrupt(told) from None
        except BareloopError as error:
            failed[cell] = str(error)
            print(f"{cell} failed: {error}", file=sys.stderr, flush=True)
    if done:
        tell(local_path(options.output_dir), tasks, cells, done)
    if failed:
        names = "; ".join(map(str, failed))
        raise BareloopError(f"{len(failed)} of {len(cells)} cells failed ({names}); the same command tries them again")


def flags(options: Any, cell: Cell) -> list[str]:
    """What one would type for a cell alone."""
    words = ["-m", cell.model, "--quant", cell.quant, "--output-dir", options.output_dir]
    words += ["--device", options.device, "--dtype", options.dtype]
    if options.data is not None:
        folder = local_path(options.data) / cell.task
        if not folder.is_dir():
            raise UsageError(f"--data {options.data} has no folder {cell.task}; name one with a folder for each task")
        words += ["--data", str(folder)]
    if options.subjects and cell.task == "mmlu":
        words += ["--subjects", *options.subjects]
    about = BENCHMARKS[cell.task]
    numbers = {"limit": options.limit, "batch_tokens": options.batch_tokens}
    numbers |= {"shots": options.shots} if about.solved else {}
    numbers |= {"batch_size": options.batch_size} if about.writes else {}
    for name, number in numbers.items():
        words += [f"--{name.replace('_', '-')}", str(number)] if number is not None else []
    switches = ("chat_template", "save_question_data", "fresh", "allow_pickle", "debug")
    return words + [f"--{name.replace('_', '-')}" for name in switches if getattr(options, name)]


def program(task: str) -> tuple[Parser, Callable[[Any], Task]]:
    """A benchmark's flags, and what makes a task of them."""
    module = importlib.import_module(f"evals.{task}")
    if task == "mmlu":
        return module.parser(), module.load_task
    from evals.harness import protocol

    return protocol.parser(module.PROTOCOL), lambda options: protocol.load_task(module.PROTOCOL, options)


def score(task: str, words: Sequence[str]) -> Summary:
    """One cell, from its flags to its exports; the table is left to the one who asked."""
    from engine.runtime.cycles import CycleCounter
    from evals.harness.evaluate import evaluate
    from evals.harness.program import choose_data, conclude

    counter = CycleCounter()  # before torch starts its threads
    flags_of, load_task = program(task)
    options = flags_of.parse_args(words)
    choose_data(options, task)
    own = load_task(options)
    path = evaluate(own, options, options.model[0], counter)
    with contextlib.redirect_stdout(io.StringIO()):
        return conclude(own, options, path)


def tell(folder: Path, tasks: Sequence[str], cells: Sequence[Cell], done: Mapping[Cell, Summary]) -> None:
    """Accuracies and times of all cells, on the screen and as Markdown."""
    from rich.table import Table
    from rich.text import Text

    from evals.harness.program import print_table

    by_row: dict[str, dict[str, Summary | None]] = {}
    for cell in cells:
        by_row.setdefault(cell.row, {})[cell.task] = done.get(cell)
    heads = ["model", *(heading(task, [own[task] for own in by_row.values()]) for task in tasks), "real"]
    lines = []
    for row, runs in by_row.items():
        seconds = sum(own.real for own in runs.values() if own is not None)
        lines.append([row, *(told(runs[task]) for task in tasks), duration(seconds)])
    table = Table()
    for place, head in enumerate(heads):
        table.add_column(Text(head), justify="left" if place == 0 else "right")
    for line in lines:
        table.add_row(*map(Text, line))
    print_table("accuracy, %", table)
    path = folder / f"matrix_{'_'.join(tasks)}.md"
    write_atomic(path, "\n".join(markdown_table(heads, lines, 1)) + "\n")
    print(f"table: {path}", file=sys.stderr)


def heading(task: str, runs: Sequence[Summary | None]) -> str:
    """A benchmark's title, and how many questions it has here."""
    sizes = sorted({own.overall.questions for own in runs if own is not None})
    return f"{BENCHMARKS[task].title} ({'/'.join(map(str, sizes)) or 'failed'})"


def told(own: Summary | None) -> str:
    """What stands in a cell: the figure of all questions, or of each part where they do not add up."""
    if own is None:
        return "failed"
    return str(own.overall) if own.pools else ", ".join(f"{part.name} {part}" for part in own.subjects)
