"""The cells of a timing study, device by weight format: their file, their table, their picture. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError
from engine.runtime.files import AppendFile
from evals.runs.summary import Accuracy

MEGA = 1e6
MANY = 2  # subjects, of more than which only the number is told


@dataclass(frozen=True)
class Cell:
    """One place of the table."""

    device: str
    format: str

    def __str__(self) -> str:
        return f"{self.device} {self.format}"


@dataclass(frozen=True)
class Measured:
    """What a cell took, in seconds and bytes, and how well it answered."""

    questions: int
    accuracy: float
    stderr: float | None
    tokens: int  # of all prompts
    load: float  # with the import of a library that the format needs
    real: float  # of scoring, as are the next three
    cpu: float
    gpu: float | None
    cycles: int | None
    peak_memory: int  # of the process, from its beginning
    gpu_memory: int | None  # the most that tensors held there
    weights: int

    @property
    def told_accuracy(self) -> str:
        """In percent, with its standard error."""
        return str(Accuracy("", self.questions, self.accuracy, math.nan if self.stderr is None else self.stderr))


@dataclass(frozen=True)
class Row:
    """A cell, with what it took or the reason why that is not known."""

    cell: Cell
    measured: Measured | None = None
    reason: str = ""


class Store:
    """The finished cells of a model: a JSON line each, with all that it depends on."""

    def __init__(self, path: Path, settings: Mapping[str, Any], fresh: bool = False) -> None:
        """Open for adding to; `fresh` puts what is there aside. Raises one line where it is damaged, or in use."""
        self.settings = dict(settings)
        self._file = AppendFile(path)
        if fresh and (self._file.lines or self._file.torn):
            path.rename(path.with_name(f"{path.name}.{datetime.now():%Y-%m-%dT%H-%M-%S.%f}.old"))
            old, self._file = self._file, AppendFile(path)
            old.close()
        try:
            self.found = self._parse()
        except BareloopError:
            self._file.close()
            raise

    def append(self, cell: Cell, measured: Measured) -> None:
        """Add a finished cell, in one write."""
        line = {"settings": self.settings, "cell": asdict(cell), "measured": asdict(measured)}
        self._file.append(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _parse(self) -> dict[Cell, Measured]:
        """What was measured with these settings."""
        result = {}
        for number, line in enumerate(self._file.lines, 1):
            try:
                known = json.loads(line)
                if known["settings"] == self.settings:
                    result[Cell(**known["cell"])] = Measured(**known["measured"])
            except (ValueError, TypeError, KeyError):
                raise BareloopError(
                    f"{self._file.path}, line {number} is no cell of a study; move the file away, or use --fresh"
                ) from None
        return result


def speedups(rows: Sequence[Row]) -> dict[Cell, float]:
    """How many times as fast a cell is as the one of its device whose weights are not quantized, where there is one."""
    plain = {row.cell.device: row.measured.real for row in rows if row.measured and row.cell.format == "none"}
    return {
        row.cell: plain[row.cell.device] / max(row.measured.real, 1e-9)
        for row in rows
        if row.measured and row.cell.device in plain
    }


def heading(settings: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """What all cells were asked, in words."""
    measured = next(row.measured for row in rows if row.measured)
    subjects = settings["subjects"]
    told = ", ".join(subjects) if len(subjects) <= MANY else f"{len(subjects)} subjects"
    return (
        f"{settings['shots']}-shot, {told}, {measured.questions:,} questions, {measured.tokens:,} tokens, "
        f"{settings['format']}"
    )


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The names of the columns, and what stands in them for each cell that was measured."""
    on_gpu = any(row.measured and row.measured.gpu is not None for row in rows)
    heads = ["device", "format", "accuracy %", "load s", "real s", "speed-up", "CPU s"]
    heads += [*(["GPU s"] if on_gpu else []), "peak MB", *(["GPU MB"] if on_gpu else []), "weights MB"]
    faster = speedups(rows)
    lines = []
    for row in rows:
        if (own := row.measured) is None:
            continue
        cell = row.cell
        line = [cell.device, cell.format, own.told_accuracy, seconds(own.load), seconds(own.real)]
        line += [f"{faster[cell]:.2f}" if cell in faster else "", seconds(own.cpu)]
        line += [("" if own.gpu is None else seconds(own.gpu))] if on_gpu else []
        line += [f"{own.peak_memory / MEGA:,.0f}"]
        line += [("" if own.gpu_memory is None else f"{own.gpu_memory / MEGA:,.0f}")] if on_gpu else []
        lines.append([*line, f"{own.weights / MEGA:,.1f}"])
    return heads, lines


def seconds(number: float) -> str:
    """To a hundredth while that tells something."""
    return f"{number:,.2f}" if number < 100 else f"{number:,.0f}"


def unmeasured(rows: Sequence[Row]) -> list[list[str]]:
    """Devices, their formats and the reason why they were not measured; a line for each reason."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.measured is None:
            by_reason.setdefault((row.cell.device, row.reason), []).append(row.cell.format)
    return [[device, ", ".join(formats), reason] for (device, reason), formats in by_reason.items()]


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """A table as GitHub shows it; the columns after the first `left` are numbers."""
    rule = ["---" if place < left else "---:" for place in range(len(heads))]
    escaped = [[word.replace("|", "\\|") for word in line] for line in (heads, rule, *lines)]
    return [f"| {' | '.join(line)} |" for line in escaped]


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Seconds and memory of each cell, its accuracy at the end of its bar."""
    from engine.cli.figures import PALETTE, picture

    known = [(row.cell, row.measured) for row in rows if row.measured]
    devices = list(dict.fromkeys(cell.device for cell, _ in known))
    colours = [PALETTE[devices.index(cell.device) % len(PALETTE)] for cell, _ in known]
    names, places = [str(cell) for cell, _ in known], range(len(known))
    with picture(path, 11.0, 1.5 + 0.32 * len(known), panels=2) as (figure, (left, right)):
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        bars = left.barh(places, [own.real for _, own in known], color=colours, height=0.7)
        left.bar_label(
            bars, [f"{seconds(own.real)} s, {own.told_accuracy} %" for _, own in known], padding=4, fontsize=9
        )
        left.set(title="Time, and accuracy", xlabel="seconds (real)")
        memory = [(own.peak_memory if own.gpu_memory is None else own.gpu_memory) / MEGA for _, own in known]
        bars = right.barh(places, memory, color=colours, height=0.7)
        right.bar_label(bars, [f"{one:,.0f} MB" for one in memory], padding=4, fontsize=9)
        on_gpu = any(own.gpu_memory is not None for _, own in known)
        right.set(title="Peak memory", xlabel="MB" + (" (on CUDA: of the GPU)" if on_gpu else ""))
        left.margins(x=0.9)
        right.margins(x=0.3)
        for axes, labels in ((left, names), (right, [""] * len(names))):
            axes.set_yticks(places, labels)
            axes.set_ylim(len(known) - 0.4, -0.6)
            axes.grid(visible=False)
            axes.xaxis.set_major_formatter("{x:,g}")
            axes.tick_params(axis="y", length=0)
