"""Pictures of what is answered correctly by subject: dots, a heat map, and where the errors are. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from engine.cli.figures import INK, LINE, MARGIN, PALE, QUIET, SMALLEST, page, place, style, text_width
from evals.analysis.findings import count as counted
from evals.analysis.findings import plain as spoken
from evals.analysis.patterns import Rate, by_subject, overall, wilson
from evals.plotting.accuracy import PLOT, subject_bars
from evals.plotting.common import (
    BELOW,
    GAP,
    GREY,
    GUESS,
    INTERVAL,
    ONE_RUN,
    Picture,
    above,
    beside,
    chance,
    fitted,
    heat,
    intervals,
    mark,
    metric,
    percent,
    percents,
    plain,
    rows_down,
    sections,
    upper,
)
from evals.runs.collection import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS = 24  # of more bars there are dots
NUMBERED = 4  # models, of more than which the dots have no numbers: those are in the heat map
ROW = 0.175  # inches
ALL = "All questions"
ONE_SUBJECT = "there is one subject"
Parts = Sequence[tuple[str, Sequence[str]]]  # subjects under headings


@style()
def subjects(group: Group, colours: Sequence[str]) -> Picture | str:
    """The accuracy of each run in each subject: bars where they are few, else a row of dots for each subject."""
    if len(group.subjects) == 1:
        return ONE_SUBJECT
    title = f"{group.title}: {metric(group)} by subject"
    if 1 < len(group.runs) <= BARS / len(group.subjects):
        return subject_bars(group, colours, title)
    rows = {row.subject: row.rates for row in by_subject(group)}
    parts, count, guessed = sections(group), len(group.runs), chance(group)
    places, height = _places(parts)
    ys = [places[subject] for subject in rows]
    wide = _widest(parts)
    value = 0.35 if count <= NUMBERED else 0.0
    column = min(3.0, max(1.1, (10.5 - wide) / count))
    heads, _, most = fitted([run.label for run in group.runs], column - 0.08, SMALLEST, bold=True)
    told = [counted(len(group.keys), "question"), INTERVAL]
    told += ["grey: the mean of all models"] if count > 1 else []
    told += [f"dashed: chance, {percent(guessed, 0)}"] if guessed is not None else []
    left, inner, room = MARGIN + wide + GAP, column - value - 0.2, most * LINE * SMALLEST + 0.1
    figure = page(title, "; ".join(told), max(6.0, left + column * count), room + height + BELOW)
    end = upper(max(rate.high for rates in rows.values() for rate in rates))
    step = next((step for step in (0.2, 0.25, 0.5) if step / end * inner > 0.58), end)
    means = [sum(rate.mean for rate in rates) / count for rates in rows.values()]
    for number, (head, colour) in enumerate(zip(heads, colours, strict=True)):
        axes = place(figure, left + number * column, BELOW, inner, height)
        axes.hlines(ys, 0, end, color=PALE, linewidth=0.6, zorder=0.5)
        if count > 1:
            axes.vlines(means, [y - 0.065 for y in ys], [y + 0.065 for y in ys], color=GREY, linewidth=1.8, zorder=1)
        rates = [own[number] for own in rows.values()]
        intervals(axes, rates, ys, [colour] * len(rates), 3.6)
        for rate, y in zip(rates, ys, strict=True) if value else ():
            beside(axes, f"{100 * rate.mean:.0f}", y, 0.28, ha="right")
        if number == 0:
            _names(axes, parts, places)
        above(axes, head, None, 0.06, weight="bold")
        rows_down(axes, height)
        plain(axes, grid="")
        axes.spines["top"].set(visible=True, color=colour, linewidth=3.0)
        percents(axes, end, step=step, inward=True)
        if guessed is not None:
            axes.axvline(guessed, **GUESS)
    caption = "Each row is a subject; a dot right of the grey mark is a model that knows more of it than the mean does."
    return Picture("subjects", title, caption, figure)


@style()
def heat_map(group: Group) -> Picture | str:
    """Every subject by every model with the number in the cell; also of sections and of all questions."""
    if len(group.subjects) == 1 or len(group.runs) == 1:
        return ONE_SUBJECT if len(group.subjects) == 1 else ONE_RUN
    from matplotlib.colors import Normalize

    rows, parts, count = {row.subject: row.rates for row in by_subject(group)}, sections(group), len(group.runs)
    digits = int(max(rates[0].n for rates in rows.values()) >= 100)
    rows |= _by_section(rows, parts)
    rows[ALL] = overall(group)
    parts = [(ALL, []), *parts]
    column = min(1.5, max(1.0, 8.0 / count))
    heads, _, most = fitted([run.label for run in group.runs], column - 0.06, SMALLEST)
    places, height = _places(parts)
    left, room = MARGIN + _widest(parts) + GAP, most * LINE * SMALLEST + 0.05
    title = f"{group.title}: {metric(group)} by subject and model, %"
    note = f"{counted(len(group.keys), 'question')}; framed: the best of a row"
    figure = page(title, note, max(6.0, left + column * count + MARGIN), room + height + MARGIN)
    axes = place(figure, left, MARGIN, column * count, height)
    shares = [rate.mean for rates in rows.values() for rate in rates]
    scale, colour = Normalize(min(shares), max(*shares, min(shares) + 0.2)), heat()
    whole = {heading for heading, _ in parts}
    for name, rates in rows.items():
        means, y = [rate.mean for rate in rates], places[name]
        best = [mean == max(means) > min(means) for mean in means]
        for number, (mean, framed) in enumerate(zip(means, best, strict=True)):
            how = {"edgecolor": INK, "linewidth": 1.0, "zorder": 2} if framed else {"zorder": 1}
            axes.barh(y, 0.98, height=ROW - 0.02, left=number + 0.01, facecolor=colour(scale(mean)), **how)
            mark(axes, f"{100 * mean:.{digits}f}", number + 0.5, y, weight="bold" if name in whole else "normal")
    for number, head in enumerate(heads):
        above(axes, head, number + 0.5)
    _names(axes, parts, places)
    rows_down(axes, height)
    axes.set_xlim(0, count)
    axes.set_xticks([])
    plain(axes, grid="")
    caption = "Numbers are percent of correct answers; the darker a cell, the more of them."
    return Picture("heat_map", title, caption, figure)


@style()
def errors(group: Group) -> Picture | str:
    """The share of wrong answers of each section and subject, the hardest first."""
    if len(group.subjects) == 1:
        return ONE_SUBJECT
    rows, parts, several = {row.subject: row.rates for row in by_subject(group)}, sections(group), len(group.runs) > 1
    within = {subject: heading for heading, listed in parts for subject in listed}
    wholes = _by_section(rows, parts)
    wrong = {name: 1 - sum(rate.mean for rate in own) / len(own) for name, own in (rows | wholes).items()}
    hardest = sorted(wrong, key=lambda name: -wrong[name])
    listed = [("", [name for name in hardest if name in rows])]
    if wholes:
        listed = [("by group", [name for name in hardest if name in wholes]), ("by subject", listed[0][1])]
    places, height = _places(listed)
    left, value = MARGIN + _widest(listed) + GAP, 0.5
    after = max(text_width(heading, SMALLEST) for heading in within.values())
    told = [counted(len(group.keys), "question")]
    told += ["bar: the mean of all models; line: from the best to the worst of them"] if several else [INTERVAL]
    title = f"{group.title}: share of wrong answers, the hardest first"
    figure = page(title, "; ".join(told), max(6.3, left + PLOT + GAP + value + after + MARGIN), height + BELOW)
    axes = place(figure, left, BELOW, PLOT, height)
    for name in hardest:
        y, rates = places[name], (rows | wholes)[name]
        ends = [1 - rate.mean for rate in rates] if several else [1 - rates[0].low, 1 - rates[0].high]
        axes.barh(y, wrong[name], height=0.12, color=GREY if name in wholes else "#C9C9C9", zorder=1)
        axes.hlines(y, min(ends), max(ends), color=INK, linewidth=1.4, zorder=2)
        beside(axes, percent(wrong[name], 0), y, GAP + 0.32, ha="right")
        if within.get(name):
            beside(axes, within[name], y, GAP + value, color=QUIET)
    _names(axes, listed, places)
    rows_down(axes, height)
    plain(axes)
    percents(axes, 1.0)
    caption = "The longer a bar, the more answers are wrong: what is at the top is where models need to learn most."
    return Picture("errors", title, caption, figure)


def _by_section(rows: Mapping[str, Sequence[Rate]], parts: Parts) -> dict[str, list[Rate]]:
    """The rates of each headed section's questions together, of each run."""
    result = {}
    for heading, listed in parts:
        if heading:
            runs = list(zip(*(rows[subject] for subject in listed), strict=True))
            counts = [(sum(own.right for own in run), sum(own.n for own in run)) for run in runs]
            result[heading] = [Rate(right, n, *wilson(right, n)) for right, n in counts]
    return result


def _widest(parts: Parts) -> float:
    """Inches that the names of sections and subjects take."""
    names = [text_width(spoken(own), SMALLEST) for _, listed in parts for own in listed]
    return max(*names, *(text_width(heading, SMALLEST, bold=True) for heading, _ in parts))


def _places(parts: Parts) -> tuple[dict[str, float], float]:
    """The middles of the rows of subjects and of their headings, in inches from the top; and where the last ends."""
    places: dict[str, float] = {}
    y = 0.0
    for heading, listed in parts:
        y += 0.12 if y else 0.03
        for name in (*([heading] if heading else []), *listed):
            places[name] = y + ROW / 2
            y += ROW
    return places, y + 0.03


def _names(axes: Axes, parts: Parts, places: Mapping[str, float]) -> None:
    """Subjects and their headings, left of the axes."""
    for heading, listed in parts:
        if heading:
            beside(axes, heading, places[heading], -GAP, weight="bold")
        for subject in listed:
            beside(axes, spoken(subject), places[subject], -GAP)
