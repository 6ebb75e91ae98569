"""What the server reports of its requests: a line for each, JSON for programs, metrics, and a summary at the end.

Texts of prompts and replies are never written.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from engine.cli.progress import duration, tokens_per_second
from engine.runtime.errors import BareloopError
from engine.serve.exceptions import translate
from engine.serve.protocol.errors import ApiError

if TYPE_CHECKING:
    from rich.console import Console

    from engine.decoding.scheduling.request import Request
    from engine.serve.metrics import Metrics

MAX_TIMES = 10_000  # requests whose times are kept for the percentiles
MAX_PATH, MAX_MODEL, MAX_ERROR = 32, 32, 300  # characters that a line shows
LEFT = 499  # nginx's status of a request whose client has left
STYLES = {2: "green", 4: "yellow", 5: "red"}  # of a status, by its first digit


@dataclass
class Served:
    """One request, filled in by its endpoint. Leaving it reports it, with the error that ended it.

    Times are in seconds; `ttft` counts from when the request came. With several choices times are those of the slowest,
    tokens those of all.
    """

    observer: Observer
    method: str
    path: str
    model: str = ""
    status: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    ttft: float = 0.0
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    finish_reasons: list[str] = field(default_factory=list)
    error: str = ""
    came: datetime = field(default_factory=lambda: datetime.now().astimezone())
    began: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0  # to its end

    def __enter__(self) -> Served:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self.fail(error)
        self.observer.finished(self)

    def note(self, requests: Sequence[Request], prompt_tokens: int) -> None:
        """Take over counts and times of the requests to the model. `prompt_tokens`: of all different prompts."""
        self.prompt_tokens = prompt_tokens
        if not requests:
            return
        self.completion_tokens = sum(request.completion_tokens for request in requests)
        self.cached_tokens = min(prompt_tokens, sum(request.cached_tokens for request in requests))
        self.queue_seconds = max(request.queue_seconds for request in requests)
        self.prefill_seconds = max(request.prefill_seconds for request in requests)
        self.decode_seconds = max(request.decode_seconds for request in requests)
        first = min((request.first_token for request in requests if request.first_token), default=self.began)
        self.ttft = first - self.began

    def fail(self, error: BaseException) -> None:
        """Set what ended the request."""
        if isinstance(error, asyncio.CancelledError):
            late = time.perf_counter() - self.began >= self.observer.timeout
            reason = "the time ran out" if late else "the server ended" if self.observer.is_ending else ""
            self.status, self.error = (503, reason) if reason else (LEFT, "the client left")
        else:
            self.status = translate(error).status
            is_known = isinstance(error, BareloopError | ApiError)
            self.error = str(error) if is_known else f"{type(error).__name__}: {error}"
        self.finish_reasons = ["abort" if self.status < 500 else "error"]

    @property
    def tokens_per_second(self) -> float:
        """Of the reply; with several choices of all together."""
        return tokens_per_second(self.completion_tokens, self.decode_seconds)

    def as_json(self) -> str:
        """A line of JSON with all fields."""
        times = ("ttft", "queue_seconds", "prefill_seconds", "decode_seconds", "seconds")
        fields = ("model", "status", "prompt_tokens", "cached_tokens", "completion_tokens", "finish_reasons", "error")
        return json.dumps(
            {"time": self.came.isoformat(timespec="milliseconds"), "method": self.method, "path": self.path}
            | {name: getattr(self, name) for name in fields}
            | {name: round(getattr(self, name), 4) for name in times}
        )


class Observer:
    """Reports requests as they end. Safe in several threads."""

    def __init__(
        self,
        metrics: Metrics,
        quiet: bool = False,
        json_log: str | None = None,
        timeout: float = float("inf"),
        output: IO[str] | None = None,
    ) -> None:
        """`quiet`: no lines for requests. `json_log`: a file to which a JSON object is appended for each request, or -
        for stdout. `timeout`: seconds after which a request is cancelled. `output`: for the lines, by default stderr.

        Raises `BareloopError` if the file cannot be written.
        """
        self.metrics, self.quiet, self.timeout = metrics, quiet, timeout
        self.is_ending = False  # what is cancelled from now on is cancelled by the server
        self._output = sys.stderr if output is None else output
        self._console = _console(self._output)
        self._json = None if json_log is None else _open_log(json_log)
        self._lock = threading.Lock()
        self._ttfts: deque[float] = deque(maxlen=MAX_TIMES)
        self._requests = self._errors = self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0
        self._running, self._busy_since, self._busy_seconds = 0, 0.0, 0.0
        self._began = time.perf_counter()

    def started(self, method: str, path: str, model: str = "") -> Served:
        """Begin a request. It is reported by `finished`, or by leaving it as a context."""
        with self._lock:
            if self._running == 0:
                self._busy_since = time.perf_counter()
            self._running += 1
        return Served(self, method, path, model)

    def finished(self, served: Served) -> None:
        """Report a request that has ended."""
        served.status = served.status or 200
        served.seconds = time.perf_counter() - served.began
        self.metrics.finished(served)
        with self._lock:
            self._running -= 1
            if self._running == 0:
                self._busy_seconds += time.perf_counter() - self._busy_since
            self._requests += 1
            self._errors += served.status >= 400 and served.status != LEFT
            self._prompt_tokens += served.prompt_tokens
            self._cached_tokens += served.cached_tokens
            self._completion_tokens += served.completion_tokens
            if served.ttft:
                self._ttfts.append(served.ttft)
            self._append(served)
            if not self.quiet:
                self._print(_columns(served), STYLES.get(served.status // 100, ""))

    def note(self, text: str) -> None:
        """Print a line about the server itself, also if it is quiet."""
        with self._lock:
            self._print([text])

    def summary(self) -> str:
        """One line about all requests."""
        with self._lock:
            busy = self._busy_seconds + (time.perf_counter() - self._busy_since if self._running else 0.0)
            ttfts = sorted(self._ttfts)
            line = f"{_count(self._requests, 'request')} in {duration(time.perf_counter() - self._began)}"
            if self._errors:
                line += f", {_count(self._errors, 'error')}"
            if not self._prompt_tokens:
                return line
            cached = self._cached_tokens / self._prompt_tokens
            line += (
                f": {self._prompt_tokens:,} + {self._completion_tokens:,} tokens, {cached:.0%} of the prompts cached"
            )
            if busy > 0:
                line += f", {self._completion_tokens / busy:.1f} tokens/s while busy"
            if ttfts:
                line += f", TTFT p50 {_seconds(_percentile(ttfts, 50))}, p99 {_seconds(_percentile(ttfts, 99))}"
            return line

    def close(self, summarizes: bool = True) -> None:
        """Print the summary, and close the log."""
        if summarizes:
            self.note(self.summary())
        with self._lock:
            if self._json not in (None, sys.stdout):
                self._json.close()
            self._json = None

    def _append(self, served: Served) -> None:
        if self._json is None:
            return
        try:
            self._json.write(served.as_json() + "\n")
            self._json.flush()
        except (OSError, ValueError) as error:  # a full disk must not end the server
            self._json = None
            self._print([f"the log of requests ends here, as it cannot be written: {error}"])

    def _print(self, columns: Sequence[str], style: str = "") -> None:
        """A line with the time before it, the status in its colour. What clients sent cannot control a terminal."""
        cells = [datetime.now().strftime("%H:%M:%S"), *map(_printable, columns)]
        try:
            if self._console is None:
                print("  ".join(cells).rstrip(), file=self._output, flush=True)
                return
            from rich.text import Text

            line = Text(f"{cells[0]}  ", style="dim")
            line.append("  ".join(cells[1:]).rstrip(), style="not dim")
            if style:
                line.stylize(style, len(cells[0]) + 2, len(cells[0]) + 5)  # the status has three digits
            self._console.print(line, soft_wrap=True)
        except (OSError, ValueError):  # nobody reads it
            return


def _columns(served: Served) -> list[str]:
    """The parts of a request's line, each as wide as that of most requests."""
    columns = [
        str(served.status),
        f"{served.method} {_clip(served.path, MAX_PATH)}".ljust(25),
        _clip(served.model, MAX_MODEL).ljust(8),
        f"{_seconds(served.seconds):>7}",
    ]
    if served.prompt_tokens:
        cached = f" ({served.cached_tokens} cached)" if served.cached_tokens else ""
        columns += [f"{f'{served.prompt_tokens}{cached}':>20} + {served.completion_tokens:<5}tokens"]
    if served.ttft:
        columns += [f"TTFT {_seconds(served.ttft):>7}"]
    if served.tokens_per_second:
        columns += [f"{served.tokens_per_second:>6.1f} tokens/s"]
    if served.finish_reasons and not served.error:
        columns += [", ".join(dict.fromkeys(served.finish_reasons))]
    return [*columns, _clip(served.error, MAX_ERROR)] if served.error else columns


def _console(output: IO[str]) -> Console | None:
    """rich's console if the output is a terminal."""
    if not output.isatty():
        return None
    from rich.console import Console

    return Console(file=output, highlight=False)


def _open_log(path: str) -> IO[str]:
    """Open the JSON log for appending. A last line that a kill has cut off is ended."""
    if path == "-":
        return sys.stdout
    file = Path(path).expanduser()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        is_torn = file.is_file() and file.stat().st_size > 0 and _last_byte(file) != b"\n"
        log = file.open("a", encoding="utf-8")
        if is_torn:
            log.write("\n")
    except OSError as error:
        raise BareloopError(f"cannot write the log {path}: {error.strerror}") from error
    return log


def _last_byte(file: Path) -> bytes:
    with file.open("rb") as content:
        content.seek(-1, 2)
        return content.read()


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def _seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else duration(value)


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
