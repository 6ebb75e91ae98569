"""Pictures of how models fail: together or apart, by a choice's place, and how sure of themselves. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from engine.cli.figures import INK, LINE, MARGIN, PALETTE, QUIET, SMALLEST, page, place, style, text_width
from evals.analysis.findings import count as counted
from evals.analysis.patterns import calibration, choice_bias, common_misses, overlaps, wilson
from evals.data.catalogue import BENCHMARKS
from evals.plotting.common import (
    NAMED,
    ONE_RUN,
    Picture,
    above,
    fitted,
    heat,
    mark,
    percent,
    percents,
    plain,
    probability,
    tint,
    upper,
)
from evals.runs.collection import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Pairs = Mapping[tuple[int, int], tuple[float, float]]  # of two runs: what is, and what is expected; or NaN
NO_CHOICES = "there are no choices"
OBSERVED = "#B5B5B5"
CELL = 0.62, 0.44  # inches of an overlap
WIDE, HIGH = 2.4, 2.0  # inches of a panel of confidence
ACROSS, WIDEST = 4, 11.0  # panels in a row, inches of two


@style()
def misses(group: Group) -> Picture | str:
    """How many questions are missed by none, one, … all of the runs, beside what independent misses would give."""
    if len(group.runs) == 1:
        return ONE_RUN
    from matplotlib.ticker import MaxNLocator

    own, count = common_misses(group), len(group.runs)
    title = f"{group.title}: questions that models miss together"
    note = (
        f"{counted(len(group.keys), 'question')}; grey: observed; blue: expected if mistakes were independent, and "
        f"95 % of shuffles; {probability(own.p)}"
    )
    note += f", within subjects {probability(own.p_within)}" if len(group.subjects) > 1 else ""
    inner, top = min(8.5, max(5.0, 0.95 * (count + 1))), 1.12 * max(*own.observed, *own.high)
    figure = page(title, note, 0.75 + inner + MARGIN, 3.55)
    axes = place(figure, 0.75, 0.55, inner, 3.0)
    for missed, observed in enumerate(own.observed):
        at, low, high, expected = missed + 0.25, own.low[missed], own.high[missed], own.expected[missed]
        axes.bar(missed - 0.2, observed, width=0.36, color=OBSERVED, zorder=1)
        axes.plot([at, at], [low, high], color=PALETTE[0], linewidth=2.0, zorder=2, solid_capstyle="butt")
        axes.plot([at], [expected], color=PALETTE[0], marker="o", markersize=5, zorder=3, clip_on=False)
        mark(axes, f"{observed:,}", missed - 0.2, observed + 0.01 * top, va="bottom")
        mark(axes, f"{expected:,.0f}", at, max(high, expected) + 0.03 * top, va="bottom", color=PALETTE[0])
    axes.set_xlim(-0.6, count + 0.6)
    axes.set_ylim(0, top)
    ends = {0: "none", count: "all"}
    axes.set_xticks(range(count + 1), [ends.get(missed, str(missed)) for missed in range(count + 1)])
    ticks = [int(tick) for tick in MaxNLocator(6, integer=True).tick_values(0, top) if tick <= top]
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    plain(axes, grid="y")
    axes.set_xlabel("models that miss a question", size=SMALLEST, color=QUIET)
    axes.set_ylabel("questions", size=SMALLEST, color=QUIET)
    caption = "Bars above the lines at both ends mean that models fail on the same questions more often than by chance."
    return Picture("misses", title, caption, figure)


@style()
def overlap(group: Group) -> Picture | str:
    """For every two runs, how much of what either misses both do, and how often with the same wrong choice."""
    if len(group.runs) == 1:
        return ONE_RUN
    pairs, count = overlaps(group), len(group.runs)
    both = {(own.first, own.second): (own.jaccard, own.expected_jaccard) for own in pairs}
    same = {(own.first, own.second): (_known(own.same_choice), _known(own.expected_same)) for own in pairs}
    parts: list[tuple[str, Pairs]] = [("both miss, of the questions that either misses", both)]
    parts += [("the same wrong choice, of the questions that both miss", same)] if group.has_choices else []
    names, wide, most = fitted([run.label for run in group.runs], 2.5, SMALLEST, bold=True)
    across, up = CELL[0] * (count - 1), max(CELL[1], most * LINE * SMALLEST + 0.04) * count
    panel = max(across + 0.1 + wide, *(text_width(told, NAMED) for told, _ in parts)) + 0.3
    columns = len(parts) if len(parts) * panel <= WIDEST else 1
    rows, pitch = len(parts) // columns, up + 0.45
    title = f"{group.title}: how much two models' mistakes overlap"
    note = "a cell for every two: what is observed, and under it what chance would give"
    figure = page(title, note, max(6.0, MARGIN + panel * columns), pitch * rows + MARGIN)
    for number, (told, values) in enumerate(parts):
        row, column = divmod(number, columns)
        axes = place(figure, MARGIN + column * panel, MARGIN + (rows - 1 - row) * pitch, across, up)
        _triangle(axes, values, names)
        above(axes, told, None, size=NAMED)
    caption = "A name stands at the end of its row and over its column; the darker the cell, the more in common."
    return Picture("overlap", title, caption, figure)


def _triangle(axes: Axes, values: Pairs, names: Sequence[str]) -> None:
    """A cell for every two under the diagonal, on which the names stand."""
    colour = heat()
    for (first, second), (found, expected) in values.items():
        axes.barh(second + 0.5, 0.97, left=first + 0.015, height=0.96, color=colour(found))
        mark(axes, _whole(found), first + 0.5, second + 0.33, size=NAMED, weight="bold")
        mark(axes, _whole(expected), first + 0.5, second + 0.72)
    for number, name in enumerate(names):
        mark(axes, name, number + 0.1, number + 0.5, weight="bold", ha="left")
    axes.set_xlim(0, len(names) - 1)
    axes.set_ylim(len(names), 0)
    axes.set_xticks([])
    axes.set_yticks([])
    plain(axes, "")


def _known(share: float | None) -> float:
    return math.nan if share is None else share


def _whole(share: float) -> str:
    """In percent; nothing where it is not known."""
    return "" if math.isnan(share) else percent(share, 0)


@style()
def choices(group: Group, colours: Sequence[str]) -> Picture | str:
    """How often each choice is chosen by its place, beside how often it is the right one."""
    biases = choice_bias(group)
    if not biases:
        return "there are no choices to compare by place" if group.has_choices else NO_CHOICES
    count = len(biases[0].chosen)
    letters = group.task in BENCHMARKS and BENCHMARKS[group.task].letters
    names = [chr(ord("A") + choice) if letters else str(choice + 1) for choice in range(count)]
    title = f"{group.title}: choices by their place"
    note = f"{counted(len(group.keys), 'question')}; bar: how often chosen; black, and under its name: how often right"
    most = upper(max(share for own in biases for share in (*own.chosen, *own.right)))
    told = [f"difference: {probability(own.p)}" for own in biases]
    figure, panels = _panels(group, (title, note), colours, (max(2.3, 0.42 * count), 1.7, 0.45), most, told)
    for axes, own in zip(panels, biases, strict=True):
        for choice, (chosen, right) in enumerate(zip(own.chosen, own.right, strict=True)):
            axes.bar(choice, chosen, width=0.7, color=tint(colours[own.run]), zorder=1)
            axes.plot([choice - 0.42, choice + 0.42], [right, right], color=INK, linewidth=1.6, zorder=2)
            mark(axes, percent(chosen, 0), choice, 0.02 * most, va="bottom")
        axes.set_xlim(-0.6, count - 0.4)
        labels = [f"{name}\n{percent(right, 0)}" for name, right in zip(names, own.right, strict=True)]
        axes.set_xticks(range(count), labels)
    caption = "Bars far above their lines are choices that a model prefers for their place, whatever they say."
    return Picture("choices", title, caption, figure)


@style()
def reliability(group: Group, colours: Sequence[str]) -> Picture | str:
    """How often a model is right when it is so sure, and how many questions each point stands for."""
    found = calibration(group)
    if not found:
        return NO_CHOICES
    title = f"{group.title}: are models right as often as they are sure?"
    note = (
        "across: how sure; up: how often right, with 95 % intervals; grey line: as often right as sure; "
        "columns: questions"
    )
    told = [
        f"ECE {percent(own.ece)}: sure {percent(own.confidence, 0)}, right {percent(own.accuracy, 0)}" for own in found
    ]
    most = max(one.n for own in found for one in own.bins)
    upright = text_width(f"{most:,}", SMALLEST) > 0.091 * WIDE  # the numbers of questions; else they lie
    strip = 0.85 if upright else 0.5
    figure, panels = _panels(group, (title, note), colours, (WIDE, HIGH, strip + 0.35), 1.0, told)
    for axes, own in zip(panels, found, strict=True):
        colour = colours[own.run]
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1.0, zorder=1)
        below = axes.inset_axes((0, -(strip + 0.08) / HIGH, 1, strip / HIGH))
        for one in own.bins:
            low, high = wilson(one.accuracy * one.n, one.n)
            axes.plot([one.confidence, one.confidence], [low, high], color=colour, linewidth=1.6, zorder=2)
            axes.plot([one.confidence], [one.accuracy], color=colour, marker="o", markersize=5, zorder=3, clip_on=False)
            middle = (one.low + one.high) / 2
            below.bar(middle, one.n / most, width=0.085, color=tint(colour))
            mark(below, f"{one.n:,}", middle, one.n / most + 0.06, va="bottom", rotation=90 if upright else 0)
        below.set_ylim(0, strip / 0.33)
        below.set_yticks([])
        plain(below, "")
        percents(below, 1.0, step=0.25, inward=True)
        percents(axes, 1.0, step=0.25)
        axes.grid(visible=True, axis="both")
        axes.tick_params(labelbottom=False)
    caption = "On the line a model is right as often as it is sure; below it is too sure (ECE: how far in all)."
    return Picture("reliability", title, caption, figure)


def _panels(
    group: Group,
    heading: tuple[str, str],
    colours: Sequence[str],
    size: tuple[float, float, float],
    most: float,
    told: Sequence[str],
) -> tuple[Figure, list[Axes]]:
    """A page with axes for each run, under its name, its colour and what is told of it.

    `size` is the width and height of each, and what it needs below it, in inches; `most` the end of the shares.
    """
    count = len(group.runs)
    across = math.ceil(count / math.ceil(count / ACROSS))
    down = math.ceil(count / across)
    inner, up, below = size
    inner = max(inner, *(text_width(own, SMALLEST) for own in told))
    heads, _, rows = fitted([run.label for run in group.runs], inner, SMALLEST, bold=True)
    line = LINE * SMALLEST
    room = (rows + 1) * line + 0.1
    gap, left = 0.3, MARGIN + 0.45
    pitch = room + up + below + 0.1
    figure = page(*heading, max(6.0, left + across * (inner + gap)), down * pitch)
    result = []
    for number, (head, own) in enumerate(zip(heads, told, strict=True)):
        row, column = divmod(number, across)
        axes = place(figure, left + column * (inner + gap), (down - 1 - row) * pitch + below, inner, up)
        above(axes, own, None, 0.06, color=QUIET)
        above(axes, head, None, 0.06 + line, weight="bold")
        plain(axes, "y")
        percents(axes, most, "y")
        axes.tick_params(labelleft=column == 0)
        axes.spines["top"].set(visible=True, color=colours[number], linewidth=3.0)
        result.append(axes)
    return figure, result
