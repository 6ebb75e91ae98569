"""The log of a run (JSON lines), its display on stderr, its picture and its summary. Loads without torch."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from itertools import takewhile
from pathlib import Path
from typing import Any

from engine.cli.progress import Progress, duration
from engine.finetune.evaluation import FOLDER as EVALUATIONS
from engine.finetune.evaluation import next_commands
from engine.runtime.files import AppendFile, write_atomic

FILE, PICTURE = "log.jsonl", "loss.png"
FEW_POINTS = 20  # that are drawn as points, too
SMOOTHING = 0.9  # share of the smoothed loss before that a step keeps


class Log:
    """DIR/log.jsonl: a line per event, with its `kind`: header, step, held_out, resumed, stopped, end."""

    def __init__(self, path: Path, done: int | None = None) -> None:
        """Open the log of a run that continues after `done` steps, and remove its later lines; without it all lines.

        Raises `BareloopError` if another process has it open.
        """
        self._file = AppendFile(path)
        lines = self._file.lines
        kept = takewhile(lambda line: done is not None and _is_before(line, done), lines)
        self._file.truncate(sum(1 for _ in kept))

    @property
    def is_empty(self) -> bool:
        return not self._file.lines

    @property
    def losses(self) -> list[float]:
        """The losses of the steps that were logged before."""
        events = (_parse(line) for line in self._file.lines)
        return [event["loss"] for event in events if event is not None and event["kind"] == "step"]

    def write(self, kind: str, content: Mapping[str, Any]) -> None:
        """Append an event."""
        self._file.append(json.dumps({"kind": kind, **content}, ensure_ascii=False) + "\n")

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        self._file.sync()

    def close(self) -> None:
        self._file.close()


def _is_before(line: str, done: int) -> bool:
    """Whether an event is of the first `done` steps. The end of a run comes after all, and so does a damaged line."""
    event = _parse(line)
    return event is not None and event["kind"] != "end" and event.get("step", 0) <= done


def _parse(line: str) -> dict[str, Any] | None:
    """A line's event, or None if it is damaged, as after a power cut."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "kind" in event else None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a log."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [event for line in lines if (event := _parse(line)) is not None]


def smoothed(losses: Iterable[float]) -> list[float]:
    """The exponential moving average of the losses, without a bias towards the first one."""
    result: list[float] = []
    total = weight = 0.0
    for loss in losses:
        total, weight = SMOOTHING * total + (1 - SMOOTHING) * loss, SMOOTHING * weight + (1 - SMOOTHING)
        result.append(total / weight)
    return result


class Display:
    """The state of a run on stderr: a table on a terminal, otherwise a line every few seconds.

    with Display(steps, done) as display:
        display.step(event, memory)
    """

    def __init__(self, steps: int, done: int, losses: Sequence[float] = ()) -> None:
        """`losses`: of the `done` steps before, for the smoothed loss."""
        self.steps, self.done = steps, done
        self._done_before = done
        self._losses = list(losses)
        self._held_out: list[float] = []
        self._tokens = 0
        self._seconds = 0.0
        self._live: Any = None
        self._last: tuple[Mapping[str, Any], int] | None = None  # what the table shows
        self._progress = Progress("training", steps, done)

    def __enter__(self) -> Display:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, redirect_stdout=sys.stdout.isatty())
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def held_out(self, loss: float) -> None:
        """Show the loss on the held-out examples."""
        self._held_out.append(loss)
        if self._live is not None and self._last is not None:
            self._live.update(self._table(*self._last), refresh=True)

    def step(self, event: Mapping[str, Any], memory_bytes: int) -> None:
        """Show a step: an event of the log."""
        self.done = event["step"]
        self._losses.append(event["loss"])
        self._tokens += event["tokens"]
        self._seconds += event["seconds"]
        self._last = event, memory_bytes
        if self._live is not None:
            self._live.update(self._table(event, memory_bytes), refresh=True)
            return
        held_out = f", held-out {self._held_out[-1]:.3f}" if self._held_out else ""
        self._progress.advance(
            1,
            f"loss {event['loss']:.3f} (smoothed {self._trend():.3f}){held_out}, "
            f"{self._tokens / self._seconds:,.0f} tokens/s",
        )

    def _trend(self) -> float:
        return smoothed(self._losses[-100:])[-1]  # older steps have no weight

    def _table(self, event: Mapping[str, Any], memory_bytes: int) -> Any:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)  # fits into 80 columns
        for name in ("step", "loss", "smoothed", "held-out", "rate", "tokens/s", "left", "memory"):
            table.add_column(name, no_wrap=True)
        left = (self.steps - self.done) * self._seconds / (self.done - self._done_before)
        trend = ""
        if self._held_out:
            first, last = self._held_out[0], self._held_out[-1]
            trend = f"{last:.3f}" if len(self._held_out) == 1 else f"{first:.3f} → {last:.3f}"
        table.add_row(
            f"{self.done:,}/{self.steps:,}",
            f"{event['loss']:.3f}",
            f"{self._trend():.3f}",
            trend,
            f"{event['learning_rate']:.2e}",
            f"{self._tokens / self._seconds:,.0f}",
            duration(left),
            f"{memory_bytes / 1e9:.2f} GB",
        )
        return table


def draw(events: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the loss, its trend, the held-out loss and the learning rate of a run as PNG.

    Raises `BareloopError` if it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [event for event in events if event["kind"] == "step"]
    tests = [event for event in events if event["kind"] == "held_out"]
    numbers, losses = [event["step"] for event in steps], [event["loss"] for event in steps]
    figure = Figure(figsize=(8, 6), layout="constrained")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    marker = "o" if len(steps) < FEW_POINTS else ""
    faint = {"color": "tab:blue", "alpha": 0.35, "linewidth": 1}
    loss.plot(numbers, losses, "-", marker=marker, label="training, each step", **faint)
    loss.plot(numbers, smoothed(losses), color="tab:blue", linewidth=2, label="training, smoothed")
    if tests:
        loss.plot(
            [event["step"] for event in tests],
            [event["loss"] for event in tests],
            "o-",
            color="tab:red",
            label="held-out",
        )
    loss.set(title=title, ylabel="cross-entropy per learned token, nats")
    loss.legend()
    rate.plot(numbers, [event["learning_rate"] for event in steps], "-", marker=marker, color="tab:gray")
    rate.set(xlabel="step", ylabel="learning rate")
    for axes in (loss, rate):
        axes.grid(alpha=0.3)
    png = BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    write_atomic(path, png.getvalue())


def summary(output: Path, base: str, adapts: bool, is_scored: bool, is_chat: bool = False) -> list[str]:
    """What a finished run did, from its log, and what to do with the result. `base`: the model's name.

    `is_chat`: the model has a chat template.
    """
    events = read_log(output / FILE)
    steps = [event for event in events if event["kind"] == "step"]
    tests = [event for event in events if event["kind"] == "held_out"]
    result = []
    if tests:
        result.append(f"held-out loss {tests[0]['loss']:.3f} → {tests[-1]['loss']:.3f}")
    if steps:
        seconds, tokens = sum(event["seconds"] for event in steps), sum(event["tokens"] for event in steps)
        trend = smoothed(event["loss"] for event in steps)
        result.append(
            f"loss {steps[0]['loss']:.3f} → {trend[-1]:.3f} (smoothed) in {len(steps):,} step{'s' * (len(steps) > 1)}, "
            f"{duration(seconds)}, {tokens / seconds:,.0f} tokens/s"
        )
        if trend[-1] > steps[0]["loss"]:
            result.append("the loss rose: try a lower --learning-rate")
    kind = "adapter" if adapts else "model"
    result.append(f"{output} has the {kind}, the log and {PICTURE}; next:")
    name = shlex.quote(str(output))
    result.append(f"  python -m chat -m {name}")
    if is_scored:
        result += [f"  {command}" for command in next_commands(output / EVALUATIONS)]
    else:
        chat = " --chat" if is_chat else ""
        result.append(f"  python -m engine -m {shlex.quote(base)} {name}{chat} -p PROMPT")
    if adapts:
        result.append(f"  python -m engine -m {name} --save {shlex.quote(f'{output}-merged')}")
    return result


def timestamp() -> str:
    """Now, as the log has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
