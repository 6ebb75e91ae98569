"""Tables, notes and pictures of runs, from their records alone. Loads without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.load.figures import Figures, percentile
from bench.load.records import OK, Run, Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

BUSY_CLIENT = 0.7  # share of a core from which on the client itself may be what is slow
SURPRISING = 0.3  # share of cached tokens beyond the shared prefix
LATE = 0.05  # seconds that a request may be sent after it was due
AXES = {"concurrency": "clients at a time", "rate": "requests per second that arrive"}


def tables(run: Run) -> list[Table]:
    """Two tables with a row for each setting: rates, and times."""
    from rich.markup import escape
    from rich.table import Table

    rates = Table(title=f"{escape(run.label)}: throughput", title_justify="left")
    times = Table(title=f"{escape(run.label)}: times in ms, percentiles", title_justify="left")
    columns = ("sent", "errors", "input tokens/s", "output tokens/s", "requests per s", "goodput", "cached")
    for table, names in (
        (rates, columns),
        (times, ("TTFT\n50/90/99", "TPOT\n50/99", "gaps\n50/99/max", "end to end\n50/99")),
    ):
        for name in ("clients\nor rate", *names):  # narrow enough for a terminal of 80 columns
            table.add_column(name, justify="right")
    for setting in run.settings:
        figures = Figures.of(setting, run.ttft_target, run.tpot_target)
        load = f"{setting.value:g}/s" if setting.kind == "rate" else f"{setting.value:g}"
        rates.add_row(
            load,
            str(figures.requests),
            ", ".join(f"{status} ({count})" for status, count in figures.errors.items()) or "0",
            f"{figures.input_rate:.1f}",
            f"{figures.output_rate:.1f}",
            f"{figures.request_rate:.2f}",
            f"{figures.goodput:.2f}",
            "?" if figures.cached_share is None else f"{figures.cached_share:.0%}",
        )
        times.add_row(
            load,
            milliseconds(figures.ttft, 50, 90, 99),
            milliseconds(figures.tpot, 50, 99),
            milliseconds(figures.gaps, 50, 99, 100),
            milliseconds(figures.latency, 50, 99),
        )
    rates.caption = f"goodput: requests/s with TTFT ≤ {run.ttft_target:g} s and TPOT ≤ {run.tpot_target:g} s"
    rates.caption_justify = "left"
    return [rates, times]


def milliseconds(values: Sequence[float], *percents: float) -> str:
    """Percentiles as "120/180/250", with a decimal below 10; "-" without values."""
    if not values:
        return "-"
    times = [1000 * percentile(values, percent) for percent in percents]
    return "/".join(f"{time:.1f}" if time < 10 else f"{time:.0f}" for time in times)


def notes(run: Run) -> list[str]:
    """What a reader has to know beside the tables: lengths, errors, doubts about the figures."""
    result = []
    settings = [setting for setting in run.settings if setting.records]
    figures = [Figures.of(setting, run.ttft_target, run.tpot_target) for setting in settings]
    good = [record for setting in settings for record in setting.good]
    if good:
        lengths = [sum(record.prompt_tokens for record in good), sum(record.completion_tokens for record in good)]
        inputs, outputs = (f"{total / len(good):.0f}" for total in lengths)
        result.append(f"tokens of a request, on average: {inputs} in, {outputs} out")
    if not all(record.has_usage for record in good):
        result.append("the server sent no usage: output tokens are chunks with text, input tokens are unknown")
    result += _errors(settings)
    cached = max((entry.cached_share or 0.0 for entry in figures), default=0.0)
    shared = run.options.get("shared_prefix", 0) / run.options.get("input_tokens", 1)
    if not run.options.get("prompts") and cached > shared + SURPRISING:
        result.append("the server had most of these prompts in its cache; another --seed gives others")
    return result + _doubts(settings)


def _errors(settings: Iterable[Setting]) -> list[str]:
    """The first message of each kind of error."""
    first: dict[str, str] = {}
    for setting in settings:
        for record in setting.records:
            if record.status != OK:
                first.setdefault(record.status, record.error)
    return [f"{status}: {error}" for status, error in first.items()]


def _doubts(settings: Iterable[Setting]) -> list[str]:
    """Where the client itself may have been too slow."""
    result = []
    for setting in settings:
        share = setting.cpu_seconds / (setting.seconds or math.inf)
        if share > BUSY_CLIENT:
            result.append(
                f"{setting.label}: this client used {share:.0%} of a core; the server may be faster than that"
            )
        if setting.kind == "rate" and setting.lateness > LATE:
            result.append(f"{setting.label}: requests were sent up to {1000 * setting.lateness:.0f} ms late")
    return result


def draw(runs: Sequence[Run], path: Path) -> None:
    """Plot TTFT, TPOT and tokens per second over concurrency and over rate, a colour for each run.

    Written to `path` + .png and .svg.
    """
    from matplotlib.figure import Figure

    from engine.cli.figures import MIN_FONT_SIZE, PALETTE, style, write

    kinds = list(dict.fromkeys(setting.kind for run in runs for setting in run.settings if setting.good))
    if not kinds:
        return
    with style():
        figure = Figure(figsize=(11.0, 3.6 * len(kinds)), layout="constrained")
        for kind, axes in zip(kinds, figure.subplots(len(kinds), 3, squeeze=False), strict=True):
            for number, run in enumerate(runs):
                _draw_run(axes, run, kind, PALETTE[number % len(PALETTE)])
            _label(axes, runs, kind)
        figure.supxlabel("line: median; dotted: 99th percentile", size=MIN_FONT_SIZE, x=0.01, ha="left")
        write(figure, path)


def _draw_run(axes: Sequence[Axes], run: Run, kind: str, colour: str) -> None:
    settings = sorted((s for s in run.settings if s.kind == kind and s.good), key=lambda setting: setting.value)
    if not settings:
        return
    xs = [setting.value for setting in settings]
    figures = [Figures.of(setting, run.ttft_target, run.tpot_target) for setting in settings]
    style: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 4}
    for panel, name in ((axes[0], "ttft"), (axes[1], "tpot")):
        for percent, line in ((50, "-"), (99, ":")):
            times = [1000 * percentile(getattr(entry, name), percent) for entry in figures]
            panel.plot(xs, times, linestyle=line, **style)
    axes[2].plot(xs, [entry.output_rate for entry in figures], label=run.label, **style)


def _label(axes: Sequence[Axes], runs: Sequence[Run], kind: str) -> None:
    """Titles, targets and ticks of a row of panels."""
    from matplotlib.ticker import NullLocator

    from engine.cli.figures import MIN_FONT_SIZE, QUIET

    values = sorted(
        {setting.value for run in runs for setting in run.settings if setting.kind == kind and setting.good}
    )
    titles = ("Time to the first token, ms", "Time of each further token, ms", "Output tokens per second")
    targets = (1000 * runs[0].ttft_target, 1000 * runs[0].tpot_target, None)
    for panel, title, target in zip(axes, titles, targets, strict=True):
        panel.set(title=title, xlabel=AXES[kind])
        if min(values) > 0 and max(values) > 4 * min(values):
            panel.set_xscale("log", base=2)
            panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticks(values, [f"{value:g}" for value in values])
        if target is not None and target <= 2 * panel.get_ylim()[1]:
            panel.axhline(target, color=QUIET, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1.5)
            place: dict[str, Any] = {"xycoords": panel.get_yaxis_transform(), "textcoords": "offset points"}
            panel.annotate("target", (0, target), (3, 2), size=MIN_FONT_SIZE, color=QUIET, **place)
        panel.set_ylim(bottom=0)
    if len(runs) > 1:
        axes[2].legend()
