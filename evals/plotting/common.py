"""What all pictures of runs share: their colours, their words, the room that names take. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from engine.cli.figures import INK, PALETTE, QUIET, SMALLEST, fold, lines, text_width
from evals.analysis.patterns import Rate
from evals.data import catalogue
from evals.data.subjects import GROUPS
from evals.runs.collection import Group, Run
from evals.runs.run_file import right_choices

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

MANY = 12  # subjects, of more than which MMLU's are shown in their four groups
NAMED = 9.0  # points of a model's or a subject's name beside a row
GAP, BELOW = 0.12, 0.33  # inches between names and axes, and under axes for their numbers
GREY = "#9A9A9A"
ONE_RUN = "there is one run"  # why a picture is not drawn
INTERVAL = "line: 95 % interval (Wilson)"
GUESS: dict[str, Any] = {"color": QUIET, "linewidth": 1.0, "linestyle": (0, (4, 3)), "zorder": 1.5}  # of chance
SMALL: dict[str, Any] = {"size": SMALLEST, "color": INK, "parse_math": False}
SPOKEN = {"stem": "STEM", "social_sciences": "Social sciences", "humanities": "Humanities", "other": "Other"}


@dataclass(frozen=True)
class Picture:
    """A figure, and what is said of it."""

    name: str  # of its files, after the task
    title: str
    caption: str  # how to read it, in one sentence
    figure: Figure


def colours(runs: Sequence[Run], everyone: Sequence[Run] = ()) -> list[str]:
    """A colour for each run; with `everyone` a model has the same one in the pictures of all benchmarks.

    There are eight. Where two of these runs would share one without need, colours go by the runs' places.
    """

    def who(run: Run) -> tuple[str, str]:
        return run.header["model"], run.header["quant"]

    known = list(dict.fromkeys(who(run) for run in (*everyone, *runs)))
    places = [known.index(who(run)) % len(PALETTE) for run in runs]
    if len(set(places)) < min(len(runs), len(PALETTE)):
        places = [place % len(PALETTE) for place in range(len(runs))]
    return [PALETTE[place] for place in places]


def tint(colour: str, strength: float = 0.35) -> tuple[float, float, float]:
    """A colour thinned with white: what is drawn over it stays readable."""
    from matplotlib.colors import to_rgb

    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def heat() -> Colormap:
    """A scale of colours from nearly white to a blue on which black text is readable; NaN is grey."""
    from matplotlib.colors import LinearSegmentedColormap

    scale = LinearSegmentedColormap.from_list("heat", [tint(PALETTE[0], 0.06), tint(PALETTE[0], 0.62)])
    return scale.with_extremes(bad="#F4F4F4")


def percent(share: float, digits: int = 1) -> str:
    """45.2 %."""
    return f"{100 * share:.{digits}f} %"


def probability(p: float) -> str:
    """How it is told: p = 0.032, or p < 0.001."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def sections(group: Group) -> list[tuple[str, list[str]]]:
    """Its subjects under headings: MMLU's groups where there are many, else one section without a heading."""
    subjects = group.subjects
    if group.task != "mmlu" or len(subjects) <= MANY:
        return [("", subjects)]
    members = {SPOKEN.get(name, name): [own for own in subjects if own in listed] for name, listed in GROUPS.items()}
    grouped = {subject for listed in members.values() for subject in listed}
    members["Not of MMLU's groups"] = [own for own in subjects if own not in grouped]
    found = [(name, listed) for name, listed in members.items() if listed]
    return found if len(found) > 1 else [("", subjects)]


def chance(group: Group, subject: str | None = None) -> float | None:
    """The accuracy of guessing, of all questions or a subject's, or None where there are no choices."""
    if not group.has_choices:
        return None
    first = group.runs[0].records
    records = [first[key] for key in group.keys if subject in (None, key[0])]
    return sum(len(right_choices(one)) / len(one["loglikelihoods"]) for one in records) / len(records)


def metric(group: Group) -> str:
    """What decides whether an answer is right, in words."""
    first, *_ = group.runs[0].records[group.keys[0]]["metrics"]
    return "accuracy" if first == "acc" else f"accuracy ({first})"


def stem(group: Group, subject: str = "") -> str:
    """What the files of a group's pictures begin with, as its run files do: mmlu_5shot_chat."""
    header = group.runs[0].header
    setting = catalogue.stem(*(header[name] for name in ("task", "split", "shots", "chat", "single_turn")))
    return re.sub(r"[^\w.-]+", "_", f"{setting}_{subject}" if subject else setting)


def fitted(names: Sequence[str], most: float, size: float = NAMED, bold: bool = False) -> tuple[list[str], float, int]:
    """Names folded into a column of at most this width; -> them, the column's width, and the lines of the longest."""
    folded = [fold(name, most, size, bold) for name in names]
    widths = [text_width(line, size, bold) for name in folded for line in name.split("\n")]
    return folded, max(widths, default=0.0), max(map(lines, folded), default=1)


def upper(share: float, step: float = 0.1) -> float:
    """The end of an axis from 0 on which this share is seen; at most 1."""
    return min(1.0, step * math.ceil((share + 0.01) / step))


def plain(axes: Axes, grid: Literal["x", "y", ""] = "x") -> None:
    """Small labels without ticks, and a grid of one direction or none."""
    axes.tick_params(length=0, labelsize=SMALLEST, labelcolor=INK)
    axes.grid(visible=False)
    if grid:
        axes.grid(visible=True, axis=grid)
    for spine in axes.spines.values():
        spine.set_visible(False)


def percents(axes: Axes, most: float, which: str = "x", step: float | None = None, inward: bool = False) -> None:
    """An axis of shares from 0 up to `most`, marked in percent; `inward` keeps the marks' texts within the axes."""
    step = step or (0.1 if most <= 0.5 else 0.2)
    ticks = [place * step for place in range(math.floor(most / step + 1e-9) + 1)]
    labels = [f"{100 * tick:.0f} %" for tick in ticks]
    if which == "y":
        axes.set_ylim(0, most)
        axes.set_yticks(ticks, labels)
        return
    axes.set_xlim(0, most)
    axes.set_xticks(ticks, labels)
    if inward:
        first, *_, last = axes.get_xticklabels()
        first.set_horizontalalignment("left")
        if ticks[-1] > 0.9 * most:
            last.set_horizontalalignment("right")


def intervals(axes: Axes, rates: Sequence[Rate], ys: Sequence[float], colours: Sequence[str], size: float) -> None:
    """A dot of this size in points at each rate, and a line over its interval."""
    axes.hlines(ys, [rate.low for rate in rates], [rate.high for rate in rates], colours, linewidth=size / 3, zorder=2)
    axes.scatter([rate.mean for rate in rates], ys, size**2, colours, linewidths=0, zorder=3, clip_on=False)


def rows_down(axes: Axes, height: float) -> None:
    """Rows measured in inches from the top, without marks of their own."""
    axes.set_ylim(height, 0)
    axes.set_yticks([])


def mark(axes: Axes, text: str, x: float, y: float, **how: Any) -> None:
    """A text in the middle of a point."""
    axes.text(x, y, text, **(SMALL | {"ha": "center", "va": "center", "zorder": 4} | how))


def beside(axes: Axes, text: str, y: float, gap: float, **how: Any) -> None:
    """A text at `y` of the axes' own scale, `gap` inches right of the axes, or left of them where it is negative."""
    axes.annotate(
        text,
        (float(gap > 0), y),
        (72 * gap, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        annotation_clip=False,
        **(SMALL | {"ha": "left" if gap > 0 else "right", "va": "center"} | how),
    )


def above(axes: Axes, text: str, x: float | None, gap: float = 0.04, **how: Any) -> None:
    """A text at `x` of the axes' own scale, `gap` inches above the axes; without `x` it begins where they begin."""
    axes.annotate(
        text,
        (x or 0.0, 1),
        (0, 72 * gap),
        xycoords=axes.transAxes if x is None else axes.get_xaxis_transform(),
        textcoords="offset points",
        annotation_clip=False,
        **(SMALL | {"ha": "left" if x is None else "center", "va": "bottom"} | how),
    )
