"""Plot of the cost of runs: seconds, questions per second, memory. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from engine.cli.figures import INK, LINE, MARGIN, MIN_FONT_SIZE, QUIET, add_axes, page, style, text_width
from evals.data.catalogue import BENCHMARKS
from evals.plotting.common import (
    GAP,
    NAME_SIZE,
    Plot,
    fold_names,
    rows_down,
    run_colours,
    style_axes,
    text_above,
    text_beside,
    tint,
)
from evals.runs.collection import Run, with_unique_labels
from evals.runs.summary import device_setting, prompt_setting, summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXIS_WIDTH = 1.9  # inches of the longest bar
BAR, HEADING = 0.15, 0.34  # inches of one of several bars in a row, and of a benchmark's title
PANELS = "time per question", "questions per second", "peak memory"


@dataclass(frozen=True)
class Cost:
    """Cost of a question in one run."""

    label: str
    setting: str  # device and number format
    colour: str
    seconds: dict[str, float]  # by kind: real, CPU, GPU
    questions_per_second: float
    tokens_per_second: float | None  # of generated answers
    peak_memory: int | None  # bytes; None on a server

    @property
    def bars(self) -> list[list[tuple[float, str]]]:
        """Bars of each of the three panels, as pairs of length and label."""
        rate = _three_figures(self.questions_per_second)
        generation = "" if self.tokens_per_second is None else f" ({_three_figures(self.tokens_per_second)} tokens/s)"
        return [
            [(value, f"{_format_time(value)} {kind}") for kind, value in self.seconds.items()],
            [(self.questions_per_second, f"{rate}{generation}")],
            [] if self.peak_memory is None else [(float(self.peak_memory), f"{self.peak_memory / 1e6:,.0f} MB")],
        ]


def costs_by_benchmark(runs: Sequence[Run]) -> dict[str, list[Cost]]:
    """Return the costs of each run under the benchmarks' titles, in the catalogue's order."""
    titles = {name: benchmark.title for name, benchmark in BENCHMARKS.items()}
    by_title: dict[str, list[Run]] = {}
    for task in dict.fromkeys((*titles, *(run.header["task"] for run in runs))):
        for run in runs:
            if run.header["task"] == task:
                by_title.setdefault(f"{titles.get(task, task)}, {prompt_setting(run.header)}", []).append(run)
    return {
        title: [
            _cost(run, colour)
            for run, colour in zip(with_unique_labels(members), run_colours(members, runs), strict=True)
        ]
        for title, members in by_title.items()
    }


@style()
def plot_costs(runs: Sequence[Run]) -> Plot:
    """Plot the cost of every run: a block with its own scales for each benchmark, a row for each run."""
    blocks = costs_by_benchmark(runs)
    rows = [cost for block in blocks.values() for cost in block]
    names, name_width, name_lines = fold_names([cost.label for cost in rows], 2.8)
    name_width = max(name_width, *(text_width(cost.setting, NAME_SIZE) for cost in rows))
    row_names = iter(f"{name}\n{cost.setting}" for name, cost in zip(names, rows, strict=True))
    label_widths = [
        max((text_width(text, MIN_FONT_SIZE) for cost in rows for _, text in cost.bars[panel]), default=0.0)
        for panel in range(3)
    ]
    lefts = list(accumulate((AXIS_WIDTH + width + 0.3 for width in label_widths), initial=MARGIN + name_width + GAP))
    pitches = [
        max(BAR * max(len(cost.seconds) for cost in block) + 0.12, (name_lines + 1) * LINE * NAME_SIZE + 0.1)
        for block in blocks.values()
    ]
    y = sum(HEADING + pitch * len(block) for pitch, block in zip(pitches, blocks.values(), strict=True)) + MARGIN
    title = "Cost of a question, by model and configuration"
    note = "each benchmark has its own scales; CPU: seconds of all threads together"
    figure = page(title, note, lefts[-1], y + 0.25)
    for number, ((heading, block), pitch) in enumerate(zip(blocks.items(), pitches, strict=True)):
        height = pitch * len(block)
        y -= HEADING + height
        for panel, left in enumerate(lefts[:-1]):
            axes = add_axes(figure, left, y, AXIS_WIDTH, height)
            for row, cost in enumerate(block):
                _draw_bars(axes, cost.bars[panel], (row + 0.5) * pitch, cost.colour)
                if panel == 0:
                    text_beside(axes, next(row_names), (row + 0.5) * pitch, -GAP, size=NAME_SIZE)
            if panel == 0:
                text_beside(axes, heading, -0.12, MARGIN - left, ha="left", size=NAME_SIZE, weight="bold")
            if number == 0:
                text_above(axes, PANELS[panel], None, HEADING, color=QUIET, size=NAME_SIZE)
            rows_down(axes, height)
            axes.set_xlim(0, max((value for cost in block for value, _ in cost.bars[panel]), default=0.0) or 1.0)
            axes.set_xticks([])
            style_axes(axes, "")
    caption = "Shorter is better for time and memory, longer for questions per second; compare within a block."
    return Plot("costs", title, caption, figure)


def _cost(run: Run, colour: str) -> Cost:
    summary = summarize(run.header, run.records.values(), {})
    count = summary.overall.questions
    seconds = {"real": summary.real / count}
    seconds |= {} if summary.cpu is None else {"CPU": summary.cpu / count}
    seconds |= {} if summary.gpu is None else {"GPU": summary.gpu / count}
    return Cost(
        label=run.label,
        setting=device_setting(run.header),
        colour=colour,
        seconds=seconds,
        questions_per_second=summary.questions_per_second,
        tokens_per_second=summary.generation.tokens_per_second if summary.generation else None,
        peak_memory=summary.peak_memory,
    )


def _draw_bars(axes: Axes, bars: Sequence[tuple[float, str]], middle: float, colour: str) -> None:
    """Draw bars below each other, the first in the strongest colour, each with its label at its end."""
    for number, (value, text) in enumerate(bars):
        y = middle + BAR * (number - (len(bars) - 1) / 2)
        axes.barh(y, value, height=0.12 if len(bars) > 1 else 0.2, color=tint(colour, 0.3 if number else 0.75))
        axes.annotate(
            text,
            (value, y),
            (4, 0),
            textcoords="offset points",
            va="center",
            size=MIN_FONT_SIZE,
            color=INK,
            annotation_clip=False,
        )


def _format_time(seconds: float) -> str:
    """Format with three significant figures, such as "1.23 s", "45.6 ms"."""
    unit, value = ("s", seconds) if seconds >= 1 else ("ms", 1000 * seconds)
    return f"{_three_figures(value)} {unit}"


def _three_figures(value: float) -> str:
    """Format with three significant figures, but at most three decimals."""
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{min(max(digits, 0), 3)}f}"
