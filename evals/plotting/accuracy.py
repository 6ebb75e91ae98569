"""Bars of accuracies: of each run, or of each run in each subject. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.cli.figures import LINE, MARGIN, QUIET, page, place, style, text_width
from evals.analysis.findings import count as counted
from evals.analysis.findings import plain as spoken
from evals.analysis.patterns import Rate, by_subject, overall
from evals.plotting.common import (
    BELOW,
    GAP,
    GUESS,
    INTERVAL,
    NAMED,
    Picture,
    above,
    beside,
    chance,
    fitted,
    intervals,
    mark,
    metric,
    percent,
    percents,
    plain,
    rows_down,
    tint,
    upper,
)
from evals.runs.collection import Group

PLOT = 4.4  # inches from 0 to the end of the longest bar's axis


@style()
def accuracy(group: Group, colours: Sequence[str]) -> Picture:
    """The accuracy of each run, the best first."""
    return _bars("accuracy", f"{group.title}: {metric(group)}", group, colours, {None: overall(group)}, best_first=True)


@style()
def subject_bars(group: Group, colours: Sequence[str], title: str) -> Picture:
    """The accuracy of each run in each subject, where they are few."""
    parts: dict[str | None, list[Rate]] = {row.subject: row.rates for row in by_subject(group)}
    return _bars("subjects", title, group, colours, parts)


def _bars(
    name: str,
    title: str,
    group: Group,
    colours: Sequence[str],
    parts: Mapping[str | None, Sequence[Rate]],
    best_first: bool = False,
) -> Picture:
    """Bars with intervals, each with the model's name before it and its value after it: a block for each subject."""
    labels, wide, most = fitted([run.label for run in group.runs], 2.8)
    headings = ["" if own is None else f"{spoken(own)} ({rates[0].n:,})" for own, rates in parts.items()]
    wide = max(wide, *(text_width(heading, NAMED, bold=True) for heading in headings))
    guesses = [chance(group, subject) for subject in parts]
    alike = len({percent(guess or 0.0, 0) for guess in guesses}) == 1  # then it is told once, above
    pitch, heading_room = max(0.29, most * LINE * NAMED + 0.08), 0.36 if headings[0] else 0.0
    block_height = pitch * len(labels) + heading_room
    height, left = block_height * len(parts), MARGIN + wide + GAP
    right = GAP + text_width("100.0 %  (100 to 100)", NAMED) + MARGIN
    note = f"{counted(len(group.keys), 'question')}; {INTERVAL}"
    figure = page(title, note, left + PLOT + right, height + BELOW + (0.2 if alike and guesses[0] else 0.0))
    axes = place(figure, left, BELOW, PLOT, height)
    for number, (heading, rates, guess) in enumerate(zip(headings, parts.values(), guesses, strict=True)):
        top = number * block_height + heading_room
        if heading:
            beside(axes, heading, top - 0.1, MARGIN - left, ha="left", size=NAMED, weight="bold")
        order = sorted(range(len(rates)), key=lambda run: -rates[run].mean) if best_first else range(len(rates))
        middles = [top + pitch * (row + 0.5) for row in range(len(rates))]
        shown, painted = [rates[run] for run in order], [colours[run] for run in order]
        axes.barh(middles, [rate.mean for rate in shown], height=0.62 * pitch, color=list(map(tint, painted)), zorder=1)
        intervals(axes, shown, middles, painted, 5.0)
        for run, rate, middle in zip(order, shown, middles, strict=True):
            beside(axes, labels[run], middle, -GAP, size=NAMED)
            value = f"{percent(rate.mean)}  ({100 * rate.low:.0f} to {100 * rate.high:.0f})"
            beside(axes, value, middle, GAP, size=NAMED)
        if guess is not None:
            axes.vlines(guess, top, top + pitch * len(rates), **GUESS)
            if not alike:
                mark(axes, f"chance {percent(guess, 0)}", guess, top - 0.1, color=QUIET)
    if alike and guesses[0] is not None:
        above(axes, f"chance {percent(guesses[0], 0)}", guesses[0], color=QUIET)
    rows_down(axes, height)
    plain(axes)
    percents(
        axes, upper(max(*(guess or 0.0 for guess in guesses), *(own.high for rates in parts.values() for own in rates)))
    )
    caption = "Bars are shares of correct answers; where lines overlap much, the models may be equally good."
    return Picture(name, title, caption, figure)
