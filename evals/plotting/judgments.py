"""Plots of judges' scores: bars by turn, and a radar chart by category. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.cli.figures import LINE, MARGIN, PALE, PALETTE, QUIET, add_axes, page, style, text_width
from engine.runtime.wording import plural
from evals.analysis.judgment_tables import category_names, interval, number
from evals.analysis.judgments import SCALE, JudgeAnalysis, analyse
from evals.plotting.accuracy import AXIS_WIDTH
from evals.plotting.common import (
    BELOW,
    GAP,
    NAME_SIZE,
    SMALL_TEXT,
    Plot,
    draw_intervals,
    fold_names,
    rows_down,
    style_axes,
    text_at,
    text_beside,
    tint,
)
from evals.runs.judged_folder import JudgedFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RADIUS = 1.9  # inches, of the radar chart
LABEL_GAP = 0.16  # inches between it and its labels
KEY_LINE, KEY_WIDTH = 0.45, 2.6  # inches, of the lines and names of the key
MAX_FILLED = 4  # models whose areas are filled
ROW, HEADING = 0.24, 0.32  # inches
MIN_SPOKES = 3
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))  # of models that share a colour
FEW_CATEGORIES = f"there are fewer than {MIN_SPOKES} categories with scores"
NO_SCORES = "there are no scores"
FEW_QUESTIONS = "too few questions for intervals"
INTERVALS = "line: 95 % interval (bootstrap over questions)"


def draw_judged(
    folder: JudgedFolder, analyses: Sequence[JudgeAnalysis] | None = None
) -> Iterator[tuple[str, Plot | str]]:
    """Yield the topic of each plot of a folder with the plot, or with the reason why there is none.

    `analyses`: of the folder's judges, if they are already computed.
    """
    colours = model_colours(folder.models)
    for analysis in analyse(folder.judges, folder.categories) if analyses is None else analyses:
        yield f"scores by {analysis.judge}", plot_scores(analysis, folder.title, colours)
        yield f"scores by {analysis.judge} by category", plot_radar(analysis, folder.title, colours)


def judged_stems(folders: Sequence[JudgedFolder]) -> list[str]:
    """Return the start of the file names of each folder's plots: its name, with a number if it occurs again."""
    names = [_file_name(folder.path.resolve().name) or "mt_bench" for folder in folders]
    return [
        f"{name}_{names[:index].count(name) + 1}" if name in names[:index] else name for index, name in enumerate(names)
    ]


def model_colours(models: Sequence[str]) -> dict[str, str]:
    """Return a colour for each model. The palette has eight; further models share them."""
    return {model: PALETTE[index % len(PALETTE)] for index, model in enumerate(models)}


@style()
def plot_scores(analysis: JudgeAnalysis, title: str, colours: Mapping[str, str]) -> Plot | str:
    """Plot the mean scores of each model on turn 1, turn 2 and both, with intervals."""
    if not any(row.overall.count for row in analysis.models):
        return NO_SCORES
    rows = [
        (row.model, name, mean)
        for row in analysis.models
        for name, mean in (("turn 1", row.turns[1]), ("turn 2", row.turns[2]), ("all", row.overall))
    ]
    names = [f"{row.model} ({plural(row.overall.count, 'score')})" for row in analysis.models]
    headings, heading_width, heading_lines = fold_names(names, 3.2, bold=True)
    above = HEADING + (heading_lines - 1) * LINE * NAME_SIZE  # from the top of a block to its first row
    block = above + 3 * ROW
    left = MARGIN + max(heading_width, text_width("turn 1", NAME_SIZE) + 0.2) + GAP
    right = GAP + text_width("10.00  (10.0 to 10.0)", NAME_SIZE) + MARGIN
    height, end = block * len(headings), _scale_end([mean.mean for _, _, mean in rows])
    title = f"{title}: mean scores by {analysis.judge}"
    shown = INTERVALS if any(interval(mean) for _, _, mean in rows) else FEW_QUESTIONS
    figure = page(title, f"{SCALE[0]} to {SCALE[1]}; {shown}", left + AXIS_WIDTH + right, height + BELOW)
    axes = add_axes(figure, left, BELOW, AXIS_WIDTH, height)
    ys = [block * (index // 3) + above + ROW * (index % 3 + 0.5) for index in range(len(rows))]
    for index, heading in enumerate(headings):
        y = block * index + above - 0.04
        text_beside(axes, heading, y, MARGIN - left, ha="left", va="bottom", size=NAME_SIZE, weight="bold")
    for (model, name, mean), y in zip(rows, ys, strict=True):
        text_beside(axes, name, y, -GAP, size=NAME_SIZE)
        if not mean.count:
            text_beside(axes, "no score", y, GAP, size=NAME_SIZE, color=QUIET)
            continue
        colour = colours[model]
        axes.barh([y], [mean.mean], height=0.62 * ROW, color=tint(colour, 0.6 if name == "all" else 0.35), zorder=1)
        draw_intervals(axes, [mean], [y], [colour], 4.5)
        limits = interval(mean)
        text_beside(axes, f"{number(mean.mean)}  ({limits})" if limits else number(mean.mean), y, GAP, size=NAME_SIZE)
    rows_down(axes, height)
    style_axes(axes)
    axes.set_xlim(0, end)
    axes.set_xticks(range(0, end + 1, 2 if end <= 10 else max(2, end // 5)))
    caption = "Bars show mean scores; models whose lines overlap widely may be equally good."
    return Plot(f"{_file_name(analysis.judge)}_scores", title, caption, figure)


@style()
def plot_radar(analysis: JudgeAnalysis, title: str, colours: Mapping[str, str]) -> Plot | str:
    """Plot the mean scores of each model by category, a polygon for each; it has a gap where there is no score."""
    names = category_names(analysis)
    if len(names) < MIN_SPOKES:
        return FEW_CATEGORIES
    models = [row for row in analysis.models if row.categories]
    means = [[row.categories[name].mean if name in row.categories else math.nan for name in names] for row in models]
    end = _scale_end([mean for row in means for mean in row])
    angles = [2 * math.pi * index / len(names) for index in range(len(names))]  # clockwise from the top
    labels, label_width, label_lines = fold_names(names, 1.5)
    entries, entry_width, entry_lines = fold_names(
        [f"{row.model}  {number(row.overall.mean)}" for row in models], KEY_WIDTH
    )
    pitch = entry_lines * LINE * NAME_SIZE + 0.1
    side, above = LABEL_GAP + label_width + MARGIN, LABEL_GAP + label_lines * LINE * NAME_SIZE + MARGIN
    height, width = max(2 * (RADIUS + above), pitch * len(models)), 2 * (RADIUS + side)
    title = f"{title}: scores by {analysis.judge} by category"
    note = f"mean scores, from 0 in the centre to {end}; beside the names: over all categories"
    figure = page(title, note, width + KEY_LINE + GAP + entry_width + MARGIN, height)
    axes = add_axes(figure, side, height / 2 - RADIUS, 2 * RADIUS, 2 * RADIUS)
    _draw_web(axes, angles, labels, end)
    key = add_axes(figure, width, 0, KEY_LINE, height)
    top, is_filled = (height - pitch * len(models)) / 2, len(models) <= MAX_FILLED
    for index, (row, values, entry) in enumerate(zip(models, means, entries, strict=True)):
        line = {"color": colours[row.model], "linestyle": _dash(row.model, colours), "linewidth": 1.8, "marker": "o"}
        xs, ys = _polygon(angles, values)
        axes.plot(xs, ys, markersize=4, zorder=3, clip_on=False, **line)
        if is_filled and not any(map(math.isnan, values)):
            axes.fill(xs, ys, color=colours[row.model], alpha=0.08, linewidth=0, zorder=2)
        y = top + pitch * (index + 0.5)
        key.plot([0, 0.5, 1], [y, y, y], markersize=4, markevery=[1], **line)
        text_beside(key, entry, y, GAP, size=NAME_SIZE)
    rows_down(key, height)
    key.set_xlim(0, 1)
    key.set_xticks([])
    style_axes(key, grid="")
    caption = "A corner further out is a higher mean score in that category; a gap is a category without scores."
    return Plot(f"{_file_name(analysis.judge)}_radar", title, caption, figure)


def _draw_web(axes: Axes, angles: Sequence[float], labels: Sequence[str], end: int) -> None:
    """Draw a spoke with its label for each category, and rings with their scores."""
    step = max(2, end // 5)
    for ring in range(step, end + 1, step):
        axes.plot(*_polygon(angles, [ring] * len(angles)), color=PALE, linewidth=0.8, zorder=1)
        x, y = (sum(ring * part(angle) for angle in angles[:2]) / 2 for part in (math.sin, math.cos))  # between spokes
        text_at(
            axes, str(ring), x, y, color=QUIET, zorder=2.5, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        )
    for angle, label in zip(angles, labels, strict=True):
        x, y = math.sin(angle), math.cos(angle)
        axes.plot([0, end * x], [0, end * y], color=PALE, linewidth=0.8, zorder=1)
        sides = ("center", "left", "right")[0 if abs(x) < 0.1 else 1 if x > 0 else 2]
        edge = ("center", "bottom", "top")[0 if abs(y) < 0.9 else 1 if y > 0 else 2]
        axes.annotate(
            label,
            (end * x, end * y),
            (72 * LABEL_GAP * x, 72 * LABEL_GAP * y),
            textcoords="offset points",
            annotation_clip=False,
            **(SMALL_TEXT | {"size": NAME_SIZE, "ha": sides, "va": edge}),
        )
    axes.set_xlim(-end, end)
    axes.set_ylim(-end, end)
    axes.set_xticks([])
    axes.set_yticks([])
    style_axes(axes, grid="")


def _polygon(angles: Sequence[float], radii: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the corners of a closed polygon. A radius of NaN leaves a gap."""
    corners = [
        (radius * math.sin(angle), radius * math.cos(angle)) for angle, radius in zip(angles, radii, strict=True)
    ]
    xs, ys = zip(*corners, corners[0], strict=True)
    return list(xs), list(ys)


def _dash(model: str, colours: Mapping[str, str]) -> Any:
    """Return a line style: solid for the first model of a colour."""
    return DASHES[list(colours).index(model) // len(PALETTE) % len(DASHES)]


def _scale_end(means: Sequence[float]) -> int:
    """Return the end of an axis from 0 for these means: 10, unless a judge gave more."""
    return max(SCALE[1], *(2 * math.ceil(mean / 2) for mean in means if not math.isnan(mean)))


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)
