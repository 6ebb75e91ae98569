"""Results -> tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evals.scoring import accuracy, pooled_stderr

if TYPE_CHECKING:
    from rich.table import Table


def accuracy_table(correct: Mapping[str, Sequence[bool]]) -> Table:
    """Accuracy ± standard error in percent, by subject and over all questions."""
    from rich.table import Table

    table = Table()
    table.add_column("subject")
    table.add_column("questions", justify="right")
    table.add_column("accuracy %", justify="right")
    rows = {subject: accuracy(values) for subject, values in correct.items()}
    for subject, (mean, stderr) in rows.items():
        table.add_row(subject, str(len(correct[subject])), _percent(mean, stderr))
    sizes = [len(values) for values in correct.values()]
    everything = [value for values in correct.values() for value in values]
    overall = accuracy(everything)[0], pooled_stderr([stderr for _, stderr in rows.values()], sizes)
    table.add_section()
    table.add_row("overall", str(len(everything)), _percent(*overall))
    return table


def _percent(mean: float, stderr: float) -> str:
    return f"{100 * mean:.2f}" if math.isnan(stderr) else f"{100 * mean:.2f} ± {100 * stderr:.2f}"
