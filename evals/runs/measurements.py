"""Measurements of a timing study, one per device and weight format: their file, table and plot. No torch."""

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
from evals.runs.collection import format_rank
from evals.runs.summary import Accuracy

MEGA = 1e6
MAX_NAMED = 2  # the heading names up to so many subjects, and only counts more


@dataclass(frozen=True)
class Configuration:
    """A device and a weight format."""

    device: str
    format: str

    def __str__(self) -> str:
        return f"{self.device} {self.format}"


@dataclass(frozen=True)
class Measurement:
    """Cost and accuracy of one configuration, in seconds and bytes."""

    questions: int
    accuracy: float
    stderr: float | None
    tokens: int  # of all prompts
    load: float  # includes importing the library that the format needs
    real: float  # of scoring, as are cpu, gpu and cycles
    cpu: float
    gpu: float | None
    cycles: int | None
    peak_memory: int  # of the process since its start
    gpu_memory: int | None  # peak of allocated tensors
    weights: int

    @property
    def accuracy_text(self) -> str:
        """Accuracy in percent with its standard error."""
        return str(Accuracy("", self.questions, self.accuracy, math.nan if self.stderr is None else self.stderr))


@dataclass(frozen=True)
class Result:
    """The measurement of a configuration, or the reason why there is none."""

    configuration: Configuration
    measurement: Measurement | None = None
    reason: str = ""


class MeasurementFile:
    """The finished measurements of a model: one JSON line each, with all settings that the result depends on."""

    def __init__(self, path: Path, settings: Mapping[str, Any], fresh: bool = False) -> None:
        """Open for appending. With `fresh`, an existing file is renamed to `*.old` first.

        Raises `BareloopError` if the file is damaged or open in another process.
        """
        self.settings = dict(settings)
        self._file = AppendFile(path)
        if fresh and (self._file.lines or self._file.torn):
            path.rename(path.with_name(f"{path.name}.{datetime.now():%Y-%m-%dT%H-%M-%S.%f}.old"))
            old, self._file = self._file, AppendFile(path)
            old.close()
        try:
            self.measurements = self._parse()  # those with the same settings
        except BareloopError:
            self._file.close()
            raise

    def append(self, configuration: Configuration, measurement: Measurement) -> None:
        """Append a finished measurement in a single write."""
        line = {"settings": self.settings, "cell": asdict(configuration), "measured": asdict(measurement)}
        self._file.append(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")

    def __enter__(self) -> MeasurementFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _parse(self) -> dict[Configuration, Measurement]:
        result = {}
        for number, line in enumerate(self._file.lines, 1):
            try:
                entry = json.loads(line)
                if entry["settings"] == self.settings:
                    result[Configuration(**entry["cell"])] = Measurement(**entry["measured"])
            except (ValueError, TypeError, KeyError):
                raise BareloopError(
                    f"{self._file.path}, line {number} is not a measurement; move the file away, or use --fresh"
                ) from None
        return result


def in_order(results: Sequence[Result]) -> list[Result]:
    """Sort results for display: devices in order of first appearance, unquantized weights before other formats."""
    devices = list(dict.fromkeys(result.configuration.device for result in results))

    def rank(result: Result) -> tuple[int, int]:
        return devices.index(result.configuration.device), format_rank(result.configuration.format)

    return sorted(results, key=rank)


def speedups(results: Sequence[Result]) -> dict[Configuration, float]:
    """Return each configuration's speed relative to unquantized weights on the same device, if those are measured."""
    measured = {row.configuration: row.measurement for row in results if row.measurement}
    plain = {key.device: own.real for key, own in measured.items() if key.format == "none"}
    return {key: plain[key.device] / max(own.real, 1e-9) for key, own in measured.items() if key.device in plain}


def heading(settings: Mapping[str, Any], results: Sequence[Result]) -> str:
    """Describe what all configurations were measured on."""
    measurement = next(row.measurement for row in results if row.measurement)
    subjects = settings["subjects"]
    names = ", ".join(subjects) if len(subjects) <= MAX_NAMED else f"{len(subjects)} subjects"
    return (
        f"{settings['shots']}-shot, {names}, {measurement.questions:,} questions, {measurement.tokens:,} tokens, "
        f"{settings['format']}"
    )


def table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Return the column names and a row of cells for each measured configuration."""
    on_gpu = any(row.measurement and row.measurement.gpu is not None for row in results)
    heads = ["device", "format", "accuracy %", "load s", "real s", "speed-up", "CPU s"]
    heads += [*(["GPU s"] if on_gpu else []), "peak MB", *(["GPU MB"] if on_gpu else []), "weights MB"]
    ratios = speedups(results)
    lines = []
    for row in in_order(results):
        if (cost := row.measurement) is None:
            continue
        key = row.configuration
        line = [key.device, key.format, cost.accuracy_text, format_seconds(cost.load), format_seconds(cost.real)]
        line += [f"{ratios[key]:.2f}" if key in ratios else "", format_seconds(cost.cpu)]
        line += [("" if cost.gpu is None else format_seconds(cost.gpu))] if on_gpu else []
        line += [f"{cost.peak_memory / MEGA:,.0f}"]
        line += [("" if cost.gpu_memory is None else f"{cost.gpu_memory / MEGA:,.0f}")] if on_gpu else []
        lines.append([*line, f"{cost.weights / MEGA:,.1f}"])
    return heads, lines


def format_seconds(value: float) -> str:
    """Format seconds with two decimals below 100, and none from there on."""
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def unmeasured(results: Sequence[Result]) -> list[list[str]]:
    """Return a row [device, formats, reason] for each device and reason why formats were not measured."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for row in in_order(results):
        if row.measurement is None:
            by_reason.setdefault((row.configuration.device, row.reason), []).append(row.configuration.format)
    return [[device, ", ".join(formats), reason] for (device, reason), formats in by_reason.items()]


def markdown_table(heads: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """Return the lines of a Markdown table. Columns after the first `left` are right-aligned."""
    rule = ["---" if column < left else "---:" for column in range(len(heads))]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (heads, rule, *lines)]
    return [f"| {' | '.join(line)} |" for line in escaped]
