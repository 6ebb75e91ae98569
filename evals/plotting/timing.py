"""Plot of a timing study: time, accuracy and memory of each device and weight format. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.cli.figures import PALETTE, plot_file
from evals.runs.measurements import MEGA, Result, format_seconds, in_order


def plot_measurements(results: Sequence[Result], title: str, path: Path) -> None:
    """Draw time and peak memory of each measured configuration as bars, the accuracy beside the time."""
    measured = [(row.configuration, row.measurement) for row in in_order(results) if row.measurement]
    devices = list(dict.fromkeys(key.device for key, _ in measured))
    colours = [PALETTE[devices.index(key.device) % len(PALETTE)] for key, _ in measured]
    names, ys = [str(key) for key, _ in measured], range(len(measured))
    with plot_file(path, 11.0, 1.5 + 0.32 * len(measured), panels=2) as (figure, (left, right)):
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        bars = left.barh(ys, [cost.real for _, cost in measured], color=colours, height=0.7)
        texts = [f"{format_seconds(cost.real)} s, {cost.accuracy_text} %" for _, cost in measured]
        left.bar_label(bars, texts, padding=4, fontsize=9)
        left.set(title="Time and accuracy", xlabel="seconds (real)")
        memory = [(cost.peak_memory if cost.gpu_memory is None else cost.gpu_memory) / MEGA for _, cost in measured]
        bars = right.barh(ys, memory, color=colours, height=0.7)
        right.bar_label(bars, [f"{megabytes:,.0f} MB" for megabytes in memory], padding=4, fontsize=9)
        on_gpu = any(cost.gpu_memory is not None for _, cost in measured)
        right.set(title="Peak memory", xlabel="MB" + (" (on CUDA: GPU memory)" if on_gpu else ""))
        left.margins(x=0.9)  # room for the texts at the ends of the bars
        right.margins(x=0.3)
        for axes, labels in ((left, names), (right, [""] * len(names))):
            axes.set_yticks(ys, labels)
            axes.set_ylim(len(measured) - 0.4, -0.6)
            axes.grid(visible=False)
            axes.xaxis.set_major_formatter("{x:,g}")
            axes.tick_params(axis="y", length=0)
