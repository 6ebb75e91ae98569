"""What every program shares: flags, one-line errors, exit codes, progress. No torch here: --help is instant."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from engine.checkpoints import embedded
from engine.quant import QUANTS, canonical
from engine.runtime.errors import BareloopError, UsageError, is_out_of_memory

EXIT_RUNTIME, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, `--long_flag` for `--long-flag`, and no abbreviations of flags."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add_model_options(self, without: Sequence[str] = ()) -> None:
        """--model, --device, --dtype, --quant, --allow-pickle: what `LLM.load` takes, but for those left out."""
        self.add_argument(
            "--model",
            "-m",
            action="extend",
            nargs="+",
            metavar="MODEL",
            help=f"model folder or hub id; several in turn (default: {embedded.NAME}, a tiny embedded one)",
        )
        if "device" not in without:
            self.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
        self.add_argument(
            "--dtype",
            default="auto",
            choices=("auto", "float32", "bfloat16", "float16"),
            help="of weights and activations (default: auto, as config.json says)",
        )
        self.add_argument(
            "--allow-pickle", action="store_true", help="read checkpoints that have only pytorch_model.bin"
        )
        if "quant" not in without:
            self.add_argument(
                "--quant",
                default="none",
                type=_quant,
                metavar="FORMAT",
                help=f"weight format: {', '.join(QUANTS)}; 8bit is llm.int8, 4bit is nf4 (default: none)",
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


def run(parser: Parser, main: Callable[[Any], object], args: Sequence[str] | None = None) -> NoReturn:
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


def choose_model(options: Any) -> None:
    """Where no model is named, the embedded one, with a line that says so."""
    if options.model:
        return
    from rich.console import Console

    options.model = [embedded.NAME]
    line = f"{embedded.ABOUT}; for a real model add -m {embedded.EXAMPLE_MODEL}"
    Console(stderr=True, highlight=False).print(line, style="dim", soft_wrap=True)


def model_options(options: Any) -> dict[str, Any]:
    """What the flags say of how a model is loaded, as `LLM.load` takes it."""
    return {name: getattr(options, name) for name in ("device", "dtype", "quant", "allow_pickle")}


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


def _quant(name: str) -> str:
    try:
        return canonical(name)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _with_dashes(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _one_line(error: BaseException) -> str | None:
    """What to tell the user, or None for a defect of ours, which shows its traceback."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted"
    if isinstance(error, BareloopError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input/output'}: {error.strerror}"
    if is_out_of_memory(error):
        return "out of memory; use a smaller model, --dtype bfloat16 or another --device"
    return None
