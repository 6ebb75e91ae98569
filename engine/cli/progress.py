"""Progress of long work on stderr, with rate and remaining time. Loads without torch."""

from __future__ import annotations

import sys
import time
from typing import Any

PLAIN_INTERVAL = 10.0  # seconds between lines if stderr is not a terminal


class Progress:
    """Progress on stderr: a bar on a terminal, otherwise a line every few seconds, with rate and remaining time.

        with Progress("mmlu", total=252, done=100) as progress:
            progress.advance(8, "accuracy 45.1 %")

    `done`: items that were done before, which do not count for the rate.
    """

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self._done_before = done
        self._start = self._last_line = time.monotonic()
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
                TextColumn("{task.fields[status]}"),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty())
            self._task = self._bar.add_task(self.label, total=self.total, completed=self.done, status="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int, status: str = "") -> None:
        """Report `count` more items; `status` is shown at the end of the line."""
        self.done += count
        now = time.monotonic()
        rate = (self.done - self._done_before) / max(now - self._start, 1e-9)
        remaining = duration((self.total - self.done) / rate) if rate else "?"
        timing = f"{rate:.2f}/s, {remaining} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, status=f"{timing}  {status}")
        elif now - self._last_line >= PLAIN_INTERVAL or self.done == self.total:
            print(
                f"{self.label}: {self.done}/{self.total}, {timing}, {status}".rstrip(", "), file=sys.stderr, flush=True
            )
            self._last_line = now


def tokens_per_second(tokens: int, seconds: float) -> float:
    """Rate of tokens, with `seconds` from the first to the last; 0 for fewer than two tokens."""
    return (tokens - 1) / seconds if tokens > 1 and seconds > 0 else 0.0


def duration(seconds: float) -> str:
    """Format seconds as 12.3 s, 4:05 min or 1:02:03 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
