"""A picture of what runs took: seconds, questions a second, memory. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from engine.cli.figures import INK, LINE, MARGIN, QUIET, SMALLEST, page, place, style, text_width
from evals.data.catalogue import BENCHMARKS
from evals.plotting.common import GAP, NAMED, Picture, above, beside, colours, fitted, plain, rows_down, tint
from evals.runs.collection import Run, labelled
from evals.runs.summary import asked, summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT = 1.9  # inches of the longest bar
BAR, HEADING = 0.15, 0.34  # inches of one of several bars in a row, and of a benchmark's title
HEADS = "time of a question", "questions a second", "peak memory"


@dataclass(frozen=True)
class Cost:
    """What a question took in a run: seconds by their kind, questions a second, bytes."""

    label: str
    setting: str  # device and number format
    colour: str
    seconds: dict[str, float]
    rate: float
    written: float | None  # tokens a second, of answers in the model's own words
    memory: int

    @property
    def bars(self) -> list[list[tuple[float, str]]]:
        """Of each of the three panels, the lengths of the bars and what stands at their ends."""
        written = "" if self.written is None else f" ({_figures(self.written)} tokens/s)"
        return [
            [(value, f"{_told(value)} {kind}") for kind, value in self.seconds.items()],
            [(self.rate, f"{_figures(self.rate)}{written}")],
            [(float(self.memory), f"{self.memory / 1e6:,.0f} MB")],
        ]


def costs(runs: Sequence[Run]) -> dict[str, list[Cost]]:
    """What each run took, under the benchmarks' titles, in the catalogue's order."""
    titles = {name: own.title for name, own in BENCHMARKS.items()}
    by_title: dict[str, list[Run]] = {}
    for task in dict.fromkeys((*titles, *(run.header["task"] for run in runs))):
        for run in runs:
            if run.header["task"] == task:
                by_title.setdefault(f"{titles.get(task, task)}, {asked(run.header)}", []).append(run)
    return {
        title: [_cost(run, colour) for run, colour in zip(labelled(own), colours(own, runs), strict=True)]
        for title, own in by_title.items()
    }


@style()
def costs_figure(runs: Sequence[Run]) -> Picture:
    """What every configuration took: a block for each benchmark, a row for each run, on scales of the block's own."""
    blocks = costs(runs)
    rows = [cost for block in blocks.values() for cost in block]
    folded, wide, most = fitted([cost.label for cost in rows], 2.8)
    wide = max(wide, *(text_width(cost.setting, NAMED) for cost in rows))
    names = iter(f"{name}\n{cost.setting}" for name, cost in zip(folded, rows, strict=True))
    rooms = [max(text_width(text, SMALLEST) for cost in rows for _, text in cost.bars[panel]) for panel in range(3)]
    lefts = list(accumulate((PLOT + room + 0.3 for room in rooms), initial=MARGIN + wide + GAP))
    pitches = [
        max(BAR * max(len(cost.seconds) for cost in block) + 0.12, (most + 1) * LINE * NAMED + 0.1)
        for block in blocks.values()
    ]
    y = sum(HEADING + pitch * len(block) for pitch, block in zip(pitches, blocks.values(), strict=True)) + MARGIN
    title = "What a question takes, by model and configuration"
    note = "each benchmark on scales of its own; CPU: seconds of all threads together"
    figure = page(title, note, lefts[-1], y + 0.25)
    for number, ((told, block), pitch) in enumerate(zip(blocks.items(), pitches, strict=True)):
        height = pitch * len(block)
        y -= HEADING + height
        for panel, left in enumerate(lefts[:-1]):
            axes = place(figure, left, y, PLOT, height)
            for row, cost in enumerate(block):
                _bars(axes, cost.bars[panel], (row + 0.5) * pitch, cost.colour)
                if panel == 0:
                    beside(axes, next(names), (row + 0.5) * pitch, -GAP, size=NAMED)
            if panel == 0:
                beside(axes, told, -0.12, MARGIN - left, ha="left", size=NAMED, weight="bold")
            if number == 0:
                above(axes, HEADS[panel], None, HEADING, color=QUIET, size=NAMED)
            rows_down(axes, height)
            axes.set_xlim(0, max(value for cost in block for value, _ in cost.bars[panel]) or 1.0)
            axes.set_xticks([])
            plain(axes, "")
    caption = "Shorter bars are better for time and memory, longer ones for questions a second; compare within a block."
    return Picture("costs", title, caption, figure)


def _cost(run: Run, colour: str) -> Cost:
    own = summarize(run.header, run.records.values(), {})
    count = own.overall.questions
    seconds = {"real": own.real / count, "CPU": own.cpu / count}
    seconds |= {} if own.gpu is None else {"GPU": own.gpu / count}
    told = f"{run.header['device']}, {run.header['dtype']}"
    written = own.writing.tokens_per_second if own.writing else None
    return Cost(run.label, told, colour, seconds, own.rate, written, own.peak_memory)


def _bars(axes: Axes, bars: Sequence[tuple[float, str]], middle: float, colour: str) -> None:
    """One under another, the first the strongest, each with its text at its end."""
    for number, (value, text) in enumerate(bars):
        y = middle + BAR * (number - (len(bars) - 1) / 2)
        axes.barh(y, value, height=0.12 if len(bars) > 1 else 0.2, color=tint(colour, 0.3 if number else 0.75))
        axes.annotate(
            text,
            (value, y),
            (4, 0),
            textcoords="offset points",
            va="center",
            size=SMALLEST,
            color=INK,
            annotation_clip=False,
        )


def _told(seconds: float) -> str:
    """To three figures: 1.23 s, 45.6 ms."""
    unit, value = ("s", seconds) if seconds >= 1 else ("ms", 1000 * seconds)
    return f"{_figures(value)} {unit}"


def _figures(value: float) -> str:
    """A number to three figures, and no more than three decimals."""
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{min(max(digits, 0), 3)}f}"
