"""Bar plots of accuracies: of each run, or of each run in each subject. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.cli.figures import LINE, MARGIN, QUIET, add_axes, page, style, text_width
from engine.runtime.wording import plural
from evals.analysis.findings import readable
from evals.analysis.patterns import Rate, by_subject, overall
from evals.plotting.common import (
    BELOW,
    CHANCE_LINE,
    GAP,
    INTERVAL,
    NAME_SIZE,
    Plot,
    axis_end,
    chance_accuracy,
    draw_intervals,
    fold_names,
    metric_name,
    percent,
    percent_axis,
    rows_down,
    style_axes,
    text_above,
    text_at,
    text_beside,
    tint,
)
from evals.runs.collection import Group

AXIS_WIDTH = 4.4  # inches


@style()
def plot_accuracy(group: Group, colours: Sequence[str]) -> Plot:
    """Plot the accuracy of each run, the best first."""
    title = f"{group.title}: {metric_name(group)}"
    return _plot_bars("accuracy", title, group, colours, {None: overall(group)}, best_first=True)


@style()
def plot_subject_bars(group: Group, colours: Sequence[str], title: str) -> Plot:
    """Plot the accuracy of each run in each subject as bars. For few subjects."""
    blocks: dict[str | None, list[Rate]] = {row.subject: row.rates for row in by_subject(group)}
    return _plot_bars("subjects", title, group, colours, blocks)


def _plot_bars(
    name: str,
    title: str,
    group: Group,
    colours: Sequence[str],
    blocks: Mapping[str | None, Sequence[Rate]],
    best_first: bool = False,
) -> Plot:
    """Plot a block of bars with intervals for each subject, the model's name before each bar and its value after it.

    `blocks`: each run's accuracy by subject; the subject None stands for all questions, without a heading.
    """
    labels, name_width, name_lines = fold_names([run.label for run in group.runs], 2.8)
    headings = ["" if subject is None else f"{readable(subject)} ({rates[0].n:,})" for subject, rates in blocks.items()]
    name_width = max(name_width, *(text_width(heading, NAME_SIZE, bold=True) for heading in headings))
    chances = [chance_accuracy(group, subject) for subject in blocks]
    one_chance = len({percent(chance or 0.0, 0) for chance in chances}) == 1  # then one label above all blocks
    pitch, heading_height = max(0.29, name_lines * LINE * NAME_SIZE + 0.08), 0.36 if headings[0] else 0.0
    block_height = pitch * len(labels) + heading_height
    height, left = block_height * len(blocks), MARGIN + name_width + GAP
    right = GAP + text_width("100.0 %  (100 to 100)", NAME_SIZE) + MARGIN
    note = f"{plural(len(group.keys), 'question')}; {INTERVAL}"
    above = 0.2 if one_chance and chances[0] else 0.0
    figure = page(title, note, left + AXIS_WIDTH + right, height + BELOW + above)
    axes = add_axes(figure, left, BELOW, AXIS_WIDTH, height)
    for number, (heading, rates, chance) in enumerate(zip(headings, blocks.values(), chances, strict=True)):
        top = number * block_height + heading_height
        if heading:
            text_beside(axes, heading, top - 0.1, MARGIN - left, ha="left", size=NAME_SIZE, weight="bold")
        order = sorted(range(len(rates)), key=lambda run: -rates[run].mean) if best_first else range(len(rates))
        ys = [top + pitch * (row + 0.5) for row in range(len(rates))]
        row_rates, row_colours = [rates[run] for run in order], [colours[run] for run in order]
        widths = [rate.mean for rate in row_rates]
        axes.barh(ys, widths, height=0.62 * pitch, color=list(map(tint, row_colours)), zorder=1)
        draw_intervals(axes, row_rates, ys, row_colours, 5.0)
        for run, rate, y in zip(order, row_rates, ys, strict=True):
            text_beside(axes, labels[run], y, -GAP, size=NAME_SIZE)
            value = f"{percent(rate.mean)}  ({100 * rate.low:.0f} to {100 * rate.high:.0f})"
            text_beside(axes, value, y, GAP, size=NAME_SIZE)
        if chance is not None:
            axes.vlines(chance, top, top + pitch * len(rates), **CHANCE_LINE)
            if not one_chance:
                text_at(axes, f"chance {percent(chance, 0)}", chance, top - 0.1, color=QUIET)
    if one_chance and chances[0] is not None:
        text_above(axes, f"chance {percent(chances[0], 0)}", chances[0], color=QUIET)
    rows_down(axes, height)
    style_axes(axes)
    ends = [chance or 0.0 for chance in chances] + [rate.high for rates in blocks.values() for rate in rates]
    percent_axis(axes, axis_end(max(ends)))
    caption = "Bars show the share of correct answers; models whose lines overlap widely may be equally good."
    return Plot(name, title, caption, figure)
