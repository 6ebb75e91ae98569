"""What every program shares: flags, one-line errors, exit codes. Loads without torch, so that --help is instant."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from engine.checkpoints import embedded
from engine.quant import AUTO, QUANTS, canonical_or_auto
from engine.runtime.errors import BareloopError, UsageError, clip_quotes, is_out_of_memory
from engine.runtime.files import local_path

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
EXIT_RUNTIME, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
SAMPLING_HELP = {  # of the numbers in `SamplingParams`
    "temperature": "0 is greedy",
    "top_k": "only the k most likely tokens",
    "top_p": "only the most likely tokens with total probability p",
    "min_p": "only tokens at least p times as likely as the most likely one",
    "repetition_penalty": "1 for none",
    "presence_penalty": "0 for none",
    "frequency_penalty": "0 for none",
    "seed": "the same seed gives the same text",
    "max_new_tokens": "the longest reply, in tokens",
    "logprobs": "show the N most likely tokens at each position",
}


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, `--long_flag` accepted as `--long-flag`, and no abbreviated flags."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add_model_options(
        self,
        without: Sequence[str] = (),
        default: str = embedded.NAME,
        about: str = "model folder, GGUF file, hub id or ollama:NAME; several are used in turn",
    ) -> None:
        """Add the flags for `LLM.load`: --model, --adapter, --device and two for GPUs, --dtype, --quant,
        --allow-pickle; not those in `without`.

        `default`: the model that the program uses if none is named, and `about`: what models it takes; for the help.
        """
        self.add_argument(
            "--model",
            "-m",
            action="extend",
            nargs="+",
            metavar="MODEL",
            help=f"{about} (default: {default})",
        )
        self.set_defaults(adapter=None)
        if "adapter" not in without:
            self.add_argument(
                "--adapter",
                metavar="FOLDER",
                help="LoRA adapter of the models, in peft's files: a folder or hub id; merged into float32 weights, "
                "kept beside others. As MODEL, such a folder is its base model with the adapter",
            )
        if "device" not in without:
            self.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
            self.add_argument(
                "--gpu-memory",
                type=float,
                metavar="SHARE",
                help="of the GPU memory that is free after loading, for keys and values (default: 0.9)",
            )
            self.add_argument(
                "--no-cuda-graphs",
                dest="cuda_graphs",
                action="store_false",
                help="launch the kernels of a decoding step one by one",
            )
        self.add_argument(
            "--dtype",
            default="auto",
            choices=("auto", "float32", "bfloat16", "float16"),
            help="of weights and activations (default: auto, as in config.json)",
        )
        self.add_argument(
            "--allow-pickle", action="store_true", help="read checkpoints that have only pytorch_model.bin"
        )
        if "quant" not in without:
            self.add_argument(
                "--quant",
                default=AUTO,
                type=_quant,
                metavar="FORMAT",
                help=f"weight format: {', '.join(QUANTS)}; 8bit is llm.int8, 4bit is nf4 (default: auto, which is "
                "gguf for a GGUF file in a type that is kept as it is, on a CPU, else none)",
            )

    def add_draft_option(self) -> None:
        """Add --draft, the flag of `LLM.load` for programs that generate text."""
        self.add_argument(
            "--draft",
            metavar="NAME",
            help="decode speculatively, with the same text: `prompt` drafts what followed the last tokens before, a "
            "model's name drafts with that model, which is smaller and has the same vocabulary",
        )

    def add_sampling_options(self) -> None:
        """Add the fields of `SamplingParams`; the model's generation_config.json is the default."""
        sampling = self.add_argument_group("sampling (default: the model's generation_config.json, else greedy)")
        about = SAMPLING_HELP
        sampling.add_argument("--temperature", "--temp", type=float, help=about["temperature"])
        sampling.add_argument("--top-k", type=int, help=about["top_k"])
        sampling.add_argument("--top-p", type=float, help=about["top_p"])
        sampling.add_argument("--min-p", type=float, help=about["min_p"])
        sampling.add_argument("--repetition-penalty", type=float, help=about["repetition_penalty"])
        sampling.add_argument("--presence-penalty", type=float, help=about["presence_penalty"])
        sampling.add_argument("--frequency-penalty", type=float, help=about["frequency_penalty"])
        sampling.add_argument("--seed", type=int, help=about["seed"])
        sampling.add_argument("--max-new-tokens", "--max-tokens", "-n", type=int, help="default: 256")
        sampling.add_argument("--stop", action="extend", nargs="+", metavar="TEXT", help="strings that end the text")
        sampling.add_argument("--logprobs", type=int, metavar="N", help=about["logprobs"])

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse as argparse does, after replacing `_` by `-` in the names of long flags."""
        arguments = list(sys.argv[1:] if args is None else args)
        return super().parse_args([_with_dashes(argument) for argument in arguments], namespace)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(EXIT_USAGE, f"{self.prog}: {clip_quotes(message)} (see {self.prog} --help)\n")


def run(parser: Parser, main: Callable[[Any], object], args: Sequence[str] | None = None) -> NoReturn:
    """Parse the arguments, run `main`, and exit: 0 success, 1 runtime error, 2 usage error, 130 interrupted.

    An expected failure prints one line on stderr; `--debug` shows the traceback.
    """
    options = parser.parse_args(args)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model may generate characters that the locale lacks
    try:
        main(options)
    except BrokenPipeError:  # the reader of our output has exited
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


def require_at_least(least: int, options: Any, *names: str) -> None:
    """Raise `UsageError` if one of these numbers, named as in `options`, is smaller. None is allowed."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} {value}: use {least} or more")


def choose_model(options: Any, default: str = embedded.NAME) -> None:
    """Select the default model if none is named, and print a line that says so; with --adapter its base model.

    Raises `BareloopError` if --adapter is needed for that, and is no adapter.
    """
    if options.model:
        return
    if options.adapter is not None:
        from engine.checkpoints.hub import find_adapter

        find_adapter(options.adapter)
        options.model, options.adapter = [options.adapter], None
        return
    from rich.console import Console

    options.model = [default]
    Console(stderr=True, highlight=False).print(embedded.ABOUT[default], style="dim", soft_wrap=True)


def model_options(options: Any) -> dict[str, Any]:
    """The flags that are keyword arguments of `LLM.load`; some of them only where the program has them."""
    flags = {name: getattr(options, name) for name in ("device", "dtype", "quant", "allow_pickle")}
    names = ("draft", "gpu_memory", "cuda_graphs", "adapter")
    optional = {name: value for name, value in vars(options).items() if name in names}
    return flags | {name: value for name, value in optional.items() if value is not None}


def label(model: str, adapter: str | None, separator: str = " + ") -> str:
    """What a model is called with the adapter of --adapter."""
    return model if adapter is None else f"{model}{separator}{short_name(adapter)}"


def short_name(name: str | Path) -> str:
    """A short name of a model or adapter, which can be a file's: <owner>__<name> of a hub id, of a path the last part.

    A checkpoint of a training run (checkpoint-100) has the run's name in front, a snapshot of a hub repository that of
    the repository.
    """
    path = local_path(name)
    if not path.exists() and HUB_ID.fullmatch(str(name)):
        return str(name).replace("/", "__")
    path = path.resolve()
    if path.parent.name == "snapshots":  # models--<owner>--<name>/snapshots/<commit>
        return path.parents[1].name.removeprefix("models--").replace("--", "__")
    return f"{path.parent.name}__{path.name}" if path.name.startswith("checkpoint-") else path.name


SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("seed", "max_new_tokens", "stop", "logprobs"),
)


def sampling_options(options: Any) -> dict[str, Any]:
    """The sampling flags that were given, as fields of `SamplingParams`."""
    return {name: getattr(options, name) for name in SAMPLING if getattr(options, name) is not None}


def printable(text: str) -> str:
    """A model's text without control characters, if stdout is a terminal, which would interpret them."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text) if sys.stdout.isatty() else text


def _quant(name: str) -> str:
    """Type of --quant: the format's canonical name."""
    try:
        return canonical_or_auto(name)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _with_dashes(argument: str) -> str:
    """Replace `_` by `-` in the name of a long flag."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _one_line(error: BaseException) -> str | None:
    """The message for the user, or None for a bug, which shows its traceback."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted"
    if isinstance(error, BareloopError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input/output'}: {error.strerror}"
    if is_out_of_memory(error):
        return "out of memory; use a smaller model, --dtype bfloat16 or another --device"
    return None
