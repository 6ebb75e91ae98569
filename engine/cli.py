"""What every program shares: flags, one-line errors, exit codes, progress. No torch here: --help is instant."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from engine.errors import BareloopError, UsageError

EXIT_RUNTIME, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
T = TypeVar("T")
PLAIN_INTERVAL = 10.0  # seconds between lines of progress where there is no terminal


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, `--long_flag` for `--long-flag`, and no abbreviations of flags."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add_model_options(self) -> None:
        """--model, --device, --dtype: what `LLM.load` takes."""
        self.add_argument(
            "--model", "-m", action="extend", nargs="+", metavar="MODEL", help="model folder or hub id; several in turn"
        )
        self.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
        self.add_argument(
            "--dtype",
            default="auto",
            choices=("auto", "float32", "bfloat16", "float16"),
            help="of weights and activations (default: auto, as config.json says)",
        )

    def add_sampling_options(self) -> None:
        """The fields of `SamplingParams`; what is not given is left to the model's generation_config.json."""
        sampling = self.add_argument_group("sampling (default: the model's generation_config.json, else greedy)")
        sampling.add_argument("--temperature", "--temp", type=float, help="0 is greedy")
        sampling.add_argument("--top-k", type=int, help="only the k likeliest tokens")
        sampling.add_argument("--top-p", type=float, help="only the likeliest tokens that reach p together")
        sampling.add_argument("--min-p", type=float, help="only tokens at least p times as likely as the likeliest")
        sampling.add_argument("--repetition-penalty", type=float, help="1 is none")
        sampling.add_argument("--presence-penalty", type=float, help="0 is none")
        sampling.add_argument("--frequency-penalty", type=float, help="0 is none")
        sampling.add_argument("--seed", type=int, help="the same seed gives the same text")
        sampling.add_argument("--max-new-tokens", "--max-tokens", "-n", type=int, help="default: 256")
        sampling.add_argument("--stop", action="extend", nargs="+", metavar="TEXT", help="strings that end the text")
        sampling.add_argument("--logprobs", type=int, metavar="N", help="show the N likeliest tokens at each place")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's, after `_` in the names of long flags has become `-`."""
        words = list(sys.argv[1:] if args is None else args)
        return super().parse_args([_with_dashes(word) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        """One line and exit code 2."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def run(parser: Parser, main: Callable[[Any], None], args: Sequence[str] | None = None) -> NoReturn:
    """Parse, run, and leave with the right exit code: 0 fine, 1 run time, 2 usage, 130 interrupted.

    Whatever fails in an expected way ends in one line on stderr; `--debug` shows the traceback.
    """
    options = parser.parse_args(args)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model writes what a narrow locale cannot
    try:
        main(options)
    except BrokenPipeError:  # the reader of our output has left
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_RUNTIME)
    except (Exception, KeyboardInterrupt) as error:
        line = _one_line(error)
        if options.debug or line is None:
            raise
        print(f"{parser.prog}: {line}", file=sys.stderr)
        interrupted = isinstance(error, KeyboardInterrupt)
        sys.exit(EXIT_INTERRUPTED if interrupted else EXIT_USAGE if isinstance(error, UsageError) else EXIT_RUNTIME)
    sys.exit(0)


SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("seed", "max_new_tokens", "stop", "logprobs"),
)


def sampling_options(options: Any) -> dict[str, Any]:
    """The sampling flags that were given, as fields of `SamplingParams`."""
    return {name: getattr(options, name) for name in SAMPLING if getattr(options, name) is not None}


def printable(text: str) -> str:
    """A model's text without the control characters that would steer a terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text) if sys.stdout.isatty() else text


def progress(items: Iterable[T], total: int, label: str, status: Callable[[], str] = str) -> Iterator[T]:
    """The items, with their rate and the time that remains on stderr: a bar on a terminal, else a line now and then."""
    if sys.stderr.isatty():
        yield from _bar(items, total, label, status)
        return
    start = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= PLAIN_INTERVAL or done == total:
            rate = done / max(now - start, 1e-9)
            remaining = (total - done) / rate
            line = f"{label}: {done}/{total}, {rate:.2f}/s, {remaining:.0f} s left {status()}"
            print(line.rstrip(), file=sys.stderr, flush=True)
            said = now


def _bar(items: Iterable[T], total: int, label: str, status: Callable[[], str]) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    start = time.monotonic()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, rate="", status="")
        for done, item in enumerate(items, 1):
            yield item
            rate = done / max(time.monotonic() - start, 1e-9)
            bar.update(task, completed=done, rate=f"{rate:.2f}/s", status=status())


def _with_dashes(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _one_line(error: BaseException) -> str | None:
    """What to tell the user, or None for a defect of ours, which shows its traceback."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, BareloopError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input/output'}: {error.strerror}"
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return "out of memory; use a smaller model, --dtype bfloat16 or another --device"
    return None
