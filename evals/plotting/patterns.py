"""Plots of mistakes: common misses, overlaps, choice bias and calibration. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from engine.cli.figures import INK, LINE, MARGIN, MIN_FONT_SIZE, PALETTE, QUIET, add_axes, page, style, text_width
from engine.runtime.wording import plural
from evals.analysis.calibration import calibration, choice_bias
from evals.analysis.patterns import common_misses, overlaps
from evals.analysis.statistics import wilson_interval
from evals.data.catalogue import BENCHMARKS
from evals.plotting.common import (
    NAME_SIZE,
    ONE_RUN,
    Plot,
    axis_end,
    fold_names,
    heat_colormap,
    p_label,
    percent,
    percent_axis,
    style_axes,
    text_above,
    text_at,
    tint,
)
from evals.runs.collection import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Pairs = Mapping[tuple[int, int], tuple[float, float]]  # two runs -> observed and expected fraction, or NaN
NO_CHOICES = "there are no choices"
OBSERVED = "#B5B5B5"
CELL = 0.62, 0.44  # inches of a cell of the overlap plot
MAX_WIDTH = 11.0  # inches of its two panels side by side
PANEL = 2.4, 2.0  # inches of a panel of the reliability plot
MAX_COLUMNS = 4  # panels in a row


@style()
def plot_misses(group: Group) -> Plot | str:
    """Plot how many questions 0, 1, … all runs miss, and what independent mistakes would give."""
    if len(group.runs) == 1:
        return ONE_RUN
    from matplotlib.ticker import MaxNLocator

    misses, count = common_misses(group), len(group.runs)
    title = f"{group.title}: questions that models miss together"
    note = (
        f"{plural(len(group.keys), 'question')}; grey: observed; blue: expected if mistakes were independent, and "
        f"95 % of permutations; {p_label(misses.p)}"
    )
    note += f", within subjects {p_label(misses.p_within)}" if len(group.subjects) > 1 else ""
    width, top = min(8.5, max(5.0, 0.95 * (count + 1))), 1.12 * max(*misses.observed, *misses.high)
    figure = page(title, note, 0.75 + width + MARGIN, 3.55)
    axes = add_axes(figure, 0.75, 0.55, width, 3.0)
    for missed, observed in enumerate(misses.observed):
        x, low, high, expected = missed + 0.25, misses.low[missed], misses.high[missed], misses.expected[missed]
        axes.bar(missed - 0.2, observed, width=0.36, color=OBSERVED, zorder=1)
        axes.plot([x, x], [low, high], color=PALETTE[0], linewidth=2.0, zorder=2, solid_capstyle="butt")
        axes.plot([x], [expected], color=PALETTE[0], marker="o", markersize=5, zorder=3, clip_on=False)
        text_at(axes, f"{observed:,}", missed - 0.2, observed + 0.01 * top, va="bottom")
        text_at(axes, f"{expected:,.0f}", x, max(high, expected) + 0.03 * top, va="bottom", color=PALETTE[0])
    axes.set_xlim(-0.6, count + 0.6)
    axes.set_ylim(0, top)
    ends = {0: "none", count: "all"}
    axes.set_xticks(range(count + 1), [ends.get(missed, str(missed)) for missed in range(count + 1)])
    ticks = [int(tick) for tick in MaxNLocator(6, integer=True).tick_values(0, top) if tick <= top]
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    style_axes(axes, grid="y")
    axes.set_xlabel("models that miss a question", size=MIN_FONT_SIZE, color=QUIET)
    axes.set_ylabel("questions", size=MIN_FONT_SIZE, color=QUIET)
    caption = "Bars above the lines at both ends mean that models miss the same questions more often than by chance."
    return Plot("misses", title, caption, figure)


@style()
def plot_overlap(group: Group) -> Plot | str:
    """Plot for every two runs the share of common misses, and of the same wrong choices among them."""
    if len(group.runs) == 1:
        return ONE_RUN
    pairs, count = overlaps(group), len(group.runs)
    both = {(pair.first, pair.second): (pair.jaccard, pair.expected_jaccard) for pair in pairs}
    same = {
        (pair.first, pair.second): (_nan_if_none(pair.same_choice), _nan_if_none(pair.expected_same)) for pair in pairs
    }
    panels: list[tuple[str, Pairs]] = [("both miss, of the questions that either misses", both)]
    panels += [("the same wrong choice, of the questions that both miss", same)] if group.has_choices else []
    names, name_width, name_lines = fold_names([run.label for run in group.runs], 2.5, MIN_FONT_SIZE, bold=True)
    width, height = CELL[0] * (count - 1), max(CELL[1], name_lines * LINE * MIN_FONT_SIZE + 0.04) * count
    panel_width = max(width + 0.1 + name_width, *(text_width(heading, NAME_SIZE) for heading, _ in panels)) + 0.3
    columns = len(panels) if len(panels) * panel_width <= MAX_WIDTH else 1
    rows, pitch = len(panels) // columns, height + 0.45
    title = f"{group.title}: overlap of two models' mistakes"
    note = "a cell for every two models: the observed share, and below it what chance would give"
    figure = page(title, note, max(6.0, MARGIN + panel_width * columns), pitch * rows + MARGIN)
    for number, (heading, values) in enumerate(panels):
        row, column = divmod(number, columns)
        axes = add_axes(figure, MARGIN + column * panel_width, MARGIN + (rows - 1 - row) * pitch, width, height)
        _draw_triangle(axes, values, names)
        text_above(axes, heading, None, size=NAME_SIZE)
    caption = "A model's name is at the end of its row and above its column; darker cells have more in common."
    return Plot("overlap", title, caption, figure)


def _draw_triangle(axes: Axes, values: Pairs, names: Sequence[str]) -> None:
    """Draw a cell for every two models below the diagonal, and the names on the diagonal."""
    colours = heat_colormap()
    for (first, second), (observed, expected) in values.items():
        axes.barh(second + 0.5, 0.97, left=first + 0.015, height=0.96, color=colours(observed))
        text_at(axes, _whole_percent(observed), first + 0.5, second + 0.33, size=NAME_SIZE, weight="bold")
        text_at(axes, _whole_percent(expected), first + 0.5, second + 0.72)
    for number, name in enumerate(names):
        text_at(axes, name, number + 0.1, number + 0.5, weight="bold", ha="left")
    axes.set_xlim(0, len(names) - 1)
    axes.set_ylim(len(names), 0)
    axes.set_xticks([])
    axes.set_yticks([])
    style_axes(axes, "")


def _nan_if_none(share: float | None) -> float:
    return math.nan if share is None else share


def _whole_percent(share: float) -> str:
    """Format a fraction in whole percent; empty for NaN."""
    return "" if math.isnan(share) else percent(share, 0)


@style()
def plot_choices(group: Group, colours: Sequence[str]) -> Plot | str:
    """Plot how often each run chooses each position, and how often that is right."""
    biases = choice_bias(group)
    if not biases:
        return "choices cannot be compared by position" if group.has_choices else NO_CHOICES
    count = len(biases[0].chosen)
    letters = group.task in BENCHMARKS and BENCHMARKS[group.task].letters
    names = [chr(ord("A") + choice) if letters else str(choice + 1) for choice in range(count)]
    title = f"{group.title}: choices by position"
    note = f"{plural(len(group.keys), 'question')}; bar: how often chosen; black line and number below: how often right"
    end = axis_end(max(share for bias in biases for share in (*bias.chosen, *bias.right)))
    subtitles = [f"difference: {p_label(bias.p)}" for bias in biases]
    figure, panels = _run_panels(group, (title, note), colours, (max(2.3, 0.42 * count), 1.7, 0.45), end, subtitles)
    for axes, bias in zip(panels, biases, strict=True):
        for choice, (chosen, right) in enumerate(zip(bias.chosen, bias.right, strict=True)):
            axes.bar(choice, chosen, width=0.7, color=tint(colours[bias.run]), zorder=1)
            axes.plot([choice - 0.42, choice + 0.42], [right, right], color=INK, linewidth=1.6, zorder=2)
            text_at(axes, percent(chosen, 0), choice, 0.02 * end, va="bottom")
        axes.set_xlim(-0.6, count - 0.4)
        labels = [f"{name}\n{percent(right, 0)}" for name, right in zip(names, bias.right, strict=True)]
        axes.set_xticks(range(count), labels)
    caption = "A bar far above its line is a choice that a model prefers for its position, whatever it says."
    return Plot("choices", title, caption, figure)


@style()
def plot_reliability(group: Group, colours: Sequence[str]) -> Plot | str:
    """Plot each run's accuracy over its confidence, with the number of questions in each bin."""
    rows = calibration(group)
    if not rows:
        return NO_CHOICES
    title = f"{group.title}: accuracy by confidence"
    note = (
        "x: confidence; y: accuracy with 95 % intervals; grey line: perfect calibration; columns: number of questions"
    )
    subtitles = [
        f"ECE {percent(row.ece)}: confidence {percent(row.confidence, 0)}, accuracy {percent(row.accuracy, 0)}"
        for row in rows
    ]
    width, height = PANEL
    largest = max(bin_.n for row in rows for bin_ in row.bins)
    is_vertical = text_width(f"{largest:,}", MIN_FONT_SIZE) > 0.091 * width  # direction of the numbers over the columns
    strip = 0.85 if is_vertical else 0.5
    figure, panels = _run_panels(group, (title, note), colours, (width, height, strip + 0.35), 1.0, subtitles)
    for axes, row in zip(panels, rows, strict=True):
        colour = colours[row.run]
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1.0, zorder=1)
        below = axes.inset_axes((0, -(strip + 0.08) / height, 1, strip / height))
        for bin_ in row.bins:
            x, y = bin_.confidence, bin_.accuracy
            axes.plot([x, x], wilson_interval(y * bin_.n, bin_.n), color=colour, linewidth=1.6, zorder=2)
            axes.plot([x], [y], color=colour, marker="o", markersize=5, zorder=3, clip_on=False)
        middles = [(bin_.low + bin_.high) / 2 for bin_ in row.bins]
        below.bar(middles, [bin_.n / largest for bin_ in row.bins], width=0.085, color=tint(colour))
        for bin_, middle in zip(row.bins, middles, strict=True):
            rotation = 90 if is_vertical else 0
            text_at(below, f"{bin_.n:,}", middle, bin_.n / largest + 0.06, va="bottom", rotation=rotation)
        below.set_ylim(0, strip / 0.33)
        below.set_yticks([])
        style_axes(below, "")
        percent_axis(below, 1.0, step=0.25, inward=True)
        percent_axis(axes, 1.0, step=0.25)
        axes.grid(visible=True, axis="both")
        axes.tick_params(labelbottom=False)
    caption = "Points below the line mean overconfidence. ECE: expected calibration error."
    return Plot("reliability", title, caption, figure)


def _run_panels(
    group: Group,
    heading: tuple[str, str],
    colours: Sequence[str],
    size: tuple[float, float, float],
    end: float,
    subtitles: Sequence[str],
) -> tuple[Figure, list[Axes]]:
    """Return a figure with axes for each run, each with the run's name, colour and subtitle.

    `heading`: title and note. `size`: width and height of the axes, and room below them, in inches. `end`: of the y
    axis.
    """
    count = len(group.runs)
    columns = math.ceil(count / math.ceil(count / MAX_COLUMNS))
    rows = math.ceil(count / columns)
    width, height, below = size
    width = max(width, *(text_width(subtitle, MIN_FONT_SIZE) for subtitle in subtitles))
    names, _, name_lines = fold_names([run.label for run in group.runs], width, MIN_FONT_SIZE, bold=True)
    line = LINE * MIN_FONT_SIZE
    gap, left = 0.3, MARGIN + 0.45
    pitch = (name_lines + 1) * line + 0.1 + height + below + 0.1
    figure = page(*heading, max(6.0, left + columns * (width + gap)), rows * pitch)
    result = []
    for number, (name, subtitle) in enumerate(zip(names, subtitles, strict=True)):
        row, column = divmod(number, columns)
        axes = add_axes(figure, left + column * (width + gap), (rows - 1 - row) * pitch + below, width, height)
        text_above(axes, subtitle, None, 0.06, color=QUIET)
        text_above(axes, name, None, 0.06 + line, weight="bold")
        style_axes(axes, "y")
        percent_axis(axes, end, "y")
        axes.tick_params(labelleft=column == 0)
        axes.spines["top"].set(visible=True, color=colours[number], linewidth=3.0)
        result.append(axes)
    return figure, result
