"""How far some work is, on stderr, with rate and remaining time."""

from __future__ import annotations

import sys
import time
from typing import Any

PLAIN_INTERVAL = 10.0  # seconds between lines of progress where there is no terminal


class Progress:
    """How far some work is, on stderr: a bar on a terminal, else a line now and then, with rate and time left.

        with Progress("mmlu", total=252, done=100) as progress:
            progress.advance(8, "accuracy 45.1 %")

    `done` was done before and does not count for the rate.
    """

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self._before = done
        self._start = self._said = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[told]}"),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty())
            self._task = self._bar.add_task(self.label, total=self.total, completed=self.done, told="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int, status: str = "") -> None:
        """`count` more are done; `status` stands at the end of the line."""
        self.done += count
        now = time.monotonic()
        rate = (self.done - self._before) / max(now - self._start, 1e-9)
        remaining = duration((self.total - self.done) / rate) if rate else "?"
        told = f"{rate:.2f}/s, {remaining} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, told=f"{told}  {status}")
        elif now - self._said >= PLAIN_INTERVAL or self.done == self.total:
            print(f"{self.label}: {self.done}/{self.total}, {told}, {status}".rstrip(", "), file=sys.stderr, flush=True)
            self._said = now


def tokens_per_second(tokens: int, seconds: float) -> float:
    """The rate of a text's tokens, `seconds` from the first to the last; 0 where there is none."""
    return (tokens - 1) / seconds if tokens > 1 and seconds > 0 else 0.0


def duration(seconds: float) -> str:
    """12.3 s, 4:05 min or 1:02:03 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
