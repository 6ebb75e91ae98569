"""The matrix of benchmarks, models and weight formats: its runs and its table (evals run)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli.progress import duration
from engine.runtime.files import write_atomic
from evals.data.catalogue import BENCHMARKS
from evals.harness.program import print_table
from evals.runs.measurements import markdown_table
from evals.runs.summary import run_name

if TYPE_CHECKING:
    from evals.runs.summary import Summary


@dataclass(frozen=True)
class MatrixRun:
    """One run: a benchmark with a model in a weight format."""

    task: str
    model: str
    quant: str
    adapter: str | None = None

    @property
    def row(self) -> str:
        """Label of its row in the table."""
        return run_name(self.model, self.quant, self.adapter)

    def __str__(self) -> str:
        return f"{self.task}, {self.row}"


def report(
    folder: Path, tasks: Sequence[str], runs: Sequence[MatrixRun], summaries: Mapping[MatrixRun, Summary]
) -> None:
    """Print accuracies and times of all runs, and write them as Markdown."""
    from rich.table import Table
    from rich.text import Text

    by_row: dict[str, dict[str, Summary | None]] = {}
    for run in runs:
        by_row.setdefault(run.row, {})[run.task] = summaries.get(run)
    heads = ["model", *(heading(task, [row[task] for row in by_row.values()]) for task in tasks), "real"]
    lines = []
    for label, row in by_row.items():
        seconds = sum(summary.real for summary in row.values() if summary is not None)
        lines.append([label, *(format_accuracy(row[task]) for task in tasks), duration(seconds)])
    table = Table()
    for column, head in enumerate(heads):
        table.add_column(Text(head), justify="left" if column == 0 else "right")
    for line in lines:
        table.add_row(*map(Text, line))
    print_table("accuracy, %", table)
    path = folder / f"matrix_{'_'.join(tasks)}.md"
    write_atomic(path, "\n".join(markdown_table(heads, lines, 1)) + "\n")
    print(f"table: {path}", file=sys.stderr)


def heading(task: str, summaries: Sequence[Summary | None]) -> str:
    """Return a benchmark's title with its number of questions."""
    sizes = sorted({summary.overall.questions for summary in summaries if summary is not None})
    return f"{BENCHMARKS[task].title} ({'/'.join(map(str, sizes)) or 'failed'})"


def format_accuracy(summary: Summary | None) -> str:
    """Return the overall accuracy, or that of each subject if a mean over subjects is not meaningful."""
    if summary is None:
        return "failed"
    if summary.pools:
        return str(summary.overall)
    return ", ".join(f"{subject.name} {subject}" for subject in summary.subjects)
