"""Plots by subject: accuracies as dots or bars, a heat map, and error rates. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.cli.figures import INK, LINE, MARGIN, MIN_FONT_SIZE, PALE, QUIET, add_axes, page, style, text_width
from engine.runtime.wording import plural
from evals.analysis.findings import readable
from evals.analysis.patterns import Rate, by_subject, overall, pool
from evals.plotting.accuracy import AXIS_WIDTH, plot_subject_bars
from evals.plotting.common import (
    BELOW,
    CHANCE_LINE,
    GAP,
    GREY,
    INTERVAL,
    ONE_RUN,
    Plot,
    axis_end,
    chance_accuracy,
    draw_intervals,
    fold_names,
    heat_colormap,
    metric_name,
    percent,
    percent_axis,
    rows_down,
    sections,
    style_axes,
    text_above,
    text_at,
    text_beside,
)
from evals.runs.collection import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BARS = 24  # more are drawn as dots
MAX_NUMBERED = 4  # with more models, dots have no numbers; the heat map has them
ROW = 0.175  # inches
ALL = "All questions"
ONE_SUBJECT = "there is one subject"
Sections = Sequence[tuple[str, Sequence[str]]]  # headings with their subjects


@style()
def plot_subjects(group: Group, colours: Sequence[str]) -> Plot | str:
    """Plot the accuracy of each run in each subject: bars if they are few, else a column of dots for each run."""
    if len(group.subjects) == 1:
        return ONE_SUBJECT
    title = f"{group.title}: {metric_name(group)} by subject"
    if 1 < len(group.runs) <= MAX_BARS / len(group.subjects):
        return plot_subject_bars(group, colours, title)
    rows = {row.subject: row.rates for row in by_subject(group)}
    parts, count, chance = sections(group), len(group.runs), chance_accuracy(group)
    row_ys, height = _row_positions(parts)
    ys = [row_ys[subject] for subject in rows]
    name_width = _name_width(parts)
    value_width = 0.35 if count <= MAX_NUMBERED else 0.0
    column = min(3.0, max(1.1, (10.5 - name_width) / count))
    heads, _, head_lines = fold_names([run.label for run in group.runs], column - 0.08, MIN_FONT_SIZE, bold=True)
    notes = [plural(len(group.keys), "question"), INTERVAL]
    notes += ["grey: mean of all models"] if count > 1 else []
    notes += [f"dashed: chance, {percent(chance, 0)}"] if chance is not None else []
    left, width, head_height = (
        MARGIN + name_width + GAP,
        column - value_width - 0.2,
        head_lines * LINE * MIN_FONT_SIZE + 0.1,
    )
    figure = page(title, "; ".join(notes), max(6.0, left + column * count), head_height + height + BELOW)
    end = axis_end(max(rate.high for rates in rows.values() for rate in rates))
    step = next((step for step in (0.2, 0.25, 0.5) if step / end * width > 0.58), end)
    means = [sum(rate.mean for rate in rates) / count for rates in rows.values()]
    for number, (head, colour) in enumerate(zip(heads, colours, strict=True)):
        axes = add_axes(figure, left + number * column, BELOW, width, height)
        axes.hlines(ys, 0, end, color=PALE, linewidth=0.6, zorder=0.5)
        if count > 1:
            axes.vlines(means, [y - 0.065 for y in ys], [y + 0.065 for y in ys], color=GREY, linewidth=1.8, zorder=1)
        rates = [row[number] for row in rows.values()]
        draw_intervals(axes, rates, ys, [colour] * len(rates), 3.6)
        for rate, y in zip(rates, ys, strict=True) if value_width else ():
            text_beside(axes, f"{100 * rate.mean:.0f}", y, 0.28, ha="right")
        if number == 0:
            _draw_names(axes, parts, row_ys)
        text_above(axes, head, None, 0.06, weight="bold")
        rows_down(axes, height)
        style_axes(axes, grid="")
        axes.spines["top"].set(visible=True, color=colour, linewidth=3.0)
        percent_axis(axes, end, step=step, inward=True)
        if chance is not None:
            axes.axvline(chance, **CHANCE_LINE)
    caption = (
        "Each row is a subject; a dot to the right of the grey mark is a model that is better at it than the mean."
    )
    return Plot("subjects", title, caption, figure)


@style()
def plot_heat_map(group: Group) -> Plot | str:
    """Plot the accuracy of every model in every subject as numbers in coloured cells; also by section and overall."""
    if len(group.subjects) == 1 or len(group.runs) == 1:
        return ONE_SUBJECT if len(group.subjects) == 1 else ONE_RUN
    from matplotlib.colors import Normalize

    rows, parts, count = {row.subject: row.rates for row in by_subject(group)}, sections(group), len(group.runs)
    digits = int(max(rates[0].n for rates in rows.values()) >= 100)
    rows |= _pool_sections(rows, parts)
    rows[ALL] = overall(group)
    parts = [(ALL, []), *parts]
    column = min(1.5, max(1.0, 8.0 / count))
    heads, _, head_lines = fold_names([run.label for run in group.runs], column - 0.06, MIN_FONT_SIZE)
    row_ys, height = _row_positions(parts)
    left, head_height = MARGIN + _name_width(parts) + GAP, head_lines * LINE * MIN_FONT_SIZE + 0.05
    title = f"{group.title}: {metric_name(group)} by subject and model, %"
    note = f"{plural(len(group.keys), 'question')}; framed: best of a row"
    figure = page(title, note, max(6.0, left + column * count + MARGIN), head_height + height + MARGIN)
    axes = add_axes(figure, left, MARGIN, column * count, height)
    shares = [rate.mean for rates in rows.values() for rate in rates]
    scale, colours = Normalize(min(shares), max(*shares, min(shares) + 0.2)), heat_colormap()
    headings = {heading for heading, _ in parts}
    cells: dict[bool, list[tuple[float, float, Any]]] = {False: [], True: []}  # whether framed -> y, left, colour
    for name, rates in rows.items():
        means, y = [rate.mean for rate in rates], row_ys[name]
        for number, mean in enumerate(means):
            is_best = mean == max(means) > min(means)
            cells[is_best].append((y, number + 0.01, colours(scale(mean))))
            weight = "bold" if name in headings else "normal"
            text_at(axes, f"{100 * mean:.{digits}f}", number + 0.5, y, weight=weight)
    for is_best, frame in ((False, {"zorder": 1}), (True, {"edgecolor": INK, "linewidth": 1.0, "zorder": 2})):
        if cells[is_best]:
            ys, lefts, fills = zip(*cells[is_best], strict=True)
            axes.barh(ys, 0.98, height=ROW - 0.02, left=lefts, color=fills, **frame)
    for number, head in enumerate(heads):
        text_above(axes, head, number + 0.5)
    _draw_names(axes, parts, row_ys)
    rows_down(axes, height)
    axes.set_xlim(0, count)
    axes.set_xticks([])
    style_axes(axes, grid="")
    caption = "Percentage of correct answers; darker cells are better."
    return Plot("heat_map", title, caption, figure)


@style()
def plot_errors(group: Group) -> Plot | str:
    """Plot the share of wrong answers in each section and subject, the hardest first."""
    if len(group.subjects) == 1:
        return ONE_SUBJECT
    subject_rates = {row.subject: row.rates for row in by_subject(group)}
    parts, has_several = sections(group), len(group.runs) > 1
    heading_of = {subject: heading for heading, subjects in parts for subject in subjects}
    section_rates = _pool_sections(subject_rates, parts)
    rates_of = subject_rates | section_rates
    wrong = {name: 1 - sum(rate.mean for rate in rates) / len(rates) for name, rates in rates_of.items()}
    hardest = sorted(wrong, key=lambda name: -wrong[name])
    rows = [("", [name for name in hardest if name in subject_rates])]
    if section_rates:
        rows = [("by group", [name for name in hardest if name in section_rates]), ("by subject", rows[0][1])]
    row_ys, height = _row_positions(rows)
    left, value_width = MARGIN + _name_width(rows) + GAP, 0.5
    heading_width = max(text_width(heading, MIN_FONT_SIZE) for heading in heading_of.values())
    notes = [plural(len(group.keys), "question")]
    notes += ["bar: mean of all models; line: from the best to the worst model"] if has_several else [INTERVAL]
    title = f"{group.title}: share of wrong answers, hardest first"
    width = left + AXIS_WIDTH + GAP + value_width + heading_width + MARGIN
    figure = page(title, "; ".join(notes), max(6.3, width), height + BELOW)
    axes = add_axes(figure, left, BELOW, AXIS_WIDTH, height)
    ys = [row_ys[name] for name in hardest]
    colours = [GREY if name in section_rates else "#C9C9C9" for name in hardest]
    axes.barh(ys, [wrong[name] for name in hardest], height=0.12, color=colours, zorder=1)
    ends = [
        [1 - rate.mean for rate in rates] if has_several else [1 - rates[0].low, 1 - rates[0].high]
        for rates in (rates_of[name] for name in hardest)
    ]
    axes.hlines(ys, list(map(min, ends)), list(map(max, ends)), color=INK, linewidth=1.4, zorder=2)
    for name, y in zip(hardest, ys, strict=True):
        text_beside(axes, percent(wrong[name], 0), y, GAP + 0.32, ha="right")
        if heading_of.get(name):
            text_beside(axes, heading_of[name], y, GAP + value_width, color=QUIET)
    _draw_names(axes, rows, row_ys)
    rows_down(axes, height)
    style_axes(axes)
    percent_axis(axes, 1.0)
    caption = "Longer bars mean more wrong answers; the subjects at the top are the hardest."
    return Plot("errors", title, caption, figure)


def _pool_sections(rows: Mapping[str, Sequence[Rate]], parts: Sections) -> dict[str, list[Rate]]:
    """Return each run's accuracy over all questions of each section that has a heading."""
    return {heading: pool([rows[subject] for subject in subjects]) for heading, subjects in parts if heading}


def _name_width(parts: Sections) -> float:
    """Return the width in inches of the longest heading or subject."""
    names = [text_width(readable(subject), MIN_FONT_SIZE) for _, subjects in parts for subject in subjects]
    return max(*names, *(text_width(heading, MIN_FONT_SIZE, bold=True) for heading, _ in parts))


def _row_positions(parts: Sections) -> tuple[dict[str, float], float]:
    """Return the middle of the row of each heading and subject, in inches from the top, and the total height."""
    positions: dict[str, float] = {}
    y = 0.0
    for heading, subjects in parts:
        y += 0.12 if y else 0.03
        for name in (*([heading] if heading else []), *subjects):
            positions[name] = y + ROW / 2
            y += ROW
    return positions, y + 0.03


def _draw_names(axes: Axes, parts: Sections, row_ys: Mapping[str, float]) -> None:
    """Write headings and subjects to the left of the axes."""
    for heading, subjects in parts:
        if heading:
            text_beside(axes, heading, row_ys[heading], -GAP, weight="bold")
        for subject in subjects:
            text_beside(axes, readable(subject), row_ys[subject], -GAP)
