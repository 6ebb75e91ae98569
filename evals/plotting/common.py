"""Shared parts of all plots: colours, labels, axes, and text placed in inches. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from engine.cli.figures import INK, MIN_FONT_SIZE, PALETTE, QUIET, fold, lines, text_width
from evals.analysis.judgments import Mean
from evals.analysis.patterns import Rate
from evals.data.catalogue import run_stem
from evals.data.subjects import GROUPS
from evals.runs.collection import SETTING_FIELDS, Group, Run
from evals.runs.run_file import correct_choices

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

MAX_UNGROUPED = 12  # with more subjects, MMLU's are shown in their four groups
NAME_SIZE = 9.0  # points, of the names of models and subjects beside rows
GAP, BELOW = 0.12, 0.33  # inches between names and axes, and below axes for tick labels
GREY = "#9A9A9A"
ONE_RUN = "there is one run"  # reason for a missing plot
INTERVAL = "line: 95 % interval (Wilson)"
CHANCE_LINE: dict[str, Any] = {"color": QUIET, "linewidth": 1.0, "linestyle": (0, (4, 3)), "zorder": 1.5}
SMALL_TEXT: dict[str, Any] = {"size": MIN_FONT_SIZE, "color": INK, "parse_math": False}
GROUP_TITLES = {"stem": "STEM", "social_sciences": "Social sciences", "humanities": "Humanities", "other": "Other"}


@dataclass(frozen=True)
class Plot:
    """A figure with its title and caption."""

    name: str  # end of its file names, after the task
    title: str
    caption: str  # how to read it, in one sentence
    figure: Figure


def run_colours(runs: Sequence[Run], all_runs: Sequence[Run] = ()) -> list[str]:
    """Return a colour for each run. With `all_runs`, a model has the same colour in the plots of all benchmarks.

    The palette has eight colours. If two of `runs` would share a colour although there are enough, colours are assigned
    by index instead.
    """

    def identity(run: Run) -> tuple[str, str | None, str]:
        return run.header["model"], run.header.get("adapter"), run.header["quant"]

    known = list(dict.fromkeys(identity(run) for run in (*all_runs, *runs)))
    indices = [known.index(identity(run)) % len(PALETTE) for run in runs]
    if len(set(indices)) < min(len(runs), len(PALETTE)):
        indices = [index % len(PALETTE) for index in range(len(runs))]
    return [PALETTE[index] for index in indices]


def tint(colour: str, strength: float = 0.35) -> tuple[float, float, float]:
    """Mix a colour with white, so that text drawn over it stays readable."""
    from matplotlib.colors import to_rgb

    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def heat_colormap() -> Colormap:
    """Return a colour map from near white to a blue that is light enough for black text. NaN is grey."""
    from matplotlib.colors import LinearSegmentedColormap

    scale = LinearSegmentedColormap.from_list("heat", [tint(PALETTE[0], 0.06), tint(PALETTE[0], 0.62)])
    return scale.with_extremes(bad="#F4F4F4")


def percent(share: float, digits: int = 1) -> str:
    """Format a fraction as "45.2 %"."""
    return f"{100 * share:.{digits}f} %"


def p_label(p: float) -> str:
    """Format a p-value as "p = 0.032" or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def sections(group: Group) -> list[tuple[str, list[str]]]:
    """Return subjects under headings: MMLU's groups if there are many subjects, else one section without a heading."""
    subjects = group.subjects
    if group.task != "mmlu" or len(subjects) <= MAX_UNGROUPED:
        return [("", subjects)]
    members = {GROUP_TITLES.get(name, name): [s for s in subjects if s in listed] for name, listed in GROUPS.items()}
    grouped = {subject for listed in members.values() for subject in listed}
    members["Not in MMLU's groups"] = [subject for subject in subjects if subject not in grouped]
    filled = [(name, listed) for name, listed in members.items() if listed]
    return filled if len(filled) > 1 else [("", subjects)]


def chance_accuracy(group: Group, subject: str | None = None) -> float | None:
    """Return the accuracy of random guessing on a subject or on all questions; None without choices."""
    if not group.has_choices:
        return None
    first = group.runs[0].records
    records = [first[key] for key in group.keys if subject in (None, key[0])]
    return sum(len(correct_choices(record)) / len(record["loglikelihoods"]) for record in records) / len(records)


def metric_name(group: Group) -> str:
    """Return the name of the metric that decides whether an answer is correct."""
    first, *_ = group.runs[0].records[group.keys[0]]["metrics"]
    return "accuracy" if first == "acc" else f"accuracy ({first})"


def file_stem(group: Group, subject: str = "") -> str:
    """Return the start of the file names of a group's plots, like that of its run files: mmlu_5shot_chat."""
    header = group.runs[0].header
    setting = run_stem(*(header[name] for name in SETTING_FIELDS))
    return re.sub(r"[^\w.-]+", "_", f"{setting}_{subject}" if subject else setting)


def fold_names(
    names: Sequence[str], max_width: float, size: float = NAME_SIZE, bold: bool = False
) -> tuple[list[str], float, int]:
    """Fold names into a column of at most `max_width` inches.

    Returns the folded names, the column's width in inches, and the largest number of lines of a name.
    """
    folded = [fold(name, max_width, size, bold) for name in names]
    widths = [text_width(line, size, bold) for name in folded for line in name.split("\n")]
    return folded, max(widths, default=0.0), max(map(lines, folded), default=1)


def axis_end(share: float, step: float = 0.1) -> float:
    """Return the end of an axis from 0 that shows this fraction: a multiple of `step`, at most 1."""
    return min(1.0, step * math.ceil((share + 0.01) / step))


def style_axes(axes: Axes, grid: Literal["x", "y", ""] = "x") -> None:
    """Remove frame and ticks, make tick labels small, and draw grid lines in one direction or none."""
    axes.tick_params(length=0, labelsize=MIN_FONT_SIZE, labelcolor=INK)
    axes.grid(visible=False)
    if grid:
        axes.grid(visible=True, axis=grid)
    for spine in axes.spines.values():
        spine.set_visible(False)


def percent_axis(axes: Axes, end: float, which: str = "x", step: float | None = None, inward: bool = False) -> None:
    """Make an axis of fractions from 0 to `end`, labelled in percent.

    `inward` aligns the first and the last label of an x axis so that they do not extend beyond it.
    """
    step = step or (0.1 if end <= 0.5 else 0.2)
    ticks = [number * step for number in range(math.floor(end / step + 1e-9) + 1)]
    labels = [f"{100 * tick:.0f} %" for tick in ticks]
    if which == "y":
        axes.set_ylim(0, end)
        axes.set_yticks(ticks, labels)
        return
    axes.set_xlim(0, end)
    axes.set_xticks(ticks, labels)
    if inward:
        first, *_, last = axes.get_xticklabels()
        first.set_horizontalalignment("left")
        if ticks[-1] > 0.9 * end:
            last.set_horizontalalignment("right")


def draw_intervals(
    axes: Axes, rates: Sequence[Rate | Mean], ys: Sequence[float], colours: Sequence[str], size: float
) -> None:
    """Draw each accuracy or mean as a dot of `size` points on a line over its interval."""
    axes.hlines(ys, [rate.low for rate in rates], [rate.high for rate in rates], colours, linewidth=size / 3, zorder=2)
    axes.scatter([rate.mean for rate in rates], ys, size**2, colours, linewidths=0, zorder=3, clip_on=False)


def rows_down(axes: Axes, height: float) -> None:
    """Measure y in inches from the top, without tick labels."""
    axes.set_ylim(height, 0)
    axes.set_yticks([])


def text_at(axes: Axes, text: str, x: float, y: float, **style: Any) -> None:
    """Write a text centred on a point in data coordinates."""
    axes.text(x, y, text, **(SMALL_TEXT | {"ha": "center", "va": "center", "zorder": 4} | style))


def text_beside(axes: Axes, text: str, y: float, gap: float, **style: Any) -> None:
    """Write a text at `y` in data coordinates, `gap` inches to the right of the axes, or to the left if negative."""
    axes.annotate(
        text,
        (float(gap > 0), y),
        (72 * gap, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        annotation_clip=False,
        **(SMALL_TEXT | {"ha": "left" if gap > 0 else "right", "va": "center"} | style),
    )


def text_above(axes: Axes, text: str, x: float | None, gap: float = 0.04, **style: Any) -> None:
    """Write a text `gap` inches above the axes, centred on `x` in data coordinates; at the left edge if None."""
    axes.annotate(
        text,
        (x or 0.0, 1),
        (0, 72 * gap),
        xycoords=axes.transAxes if x is None else axes.get_xaxis_transform(),
        textcoords="offset points",
        annotation_clip=False,
        **(SMALL_TEXT | {"ha": "left" if x is None else "center", "va": "bottom"} | style),
    )
