"""python -m engine --model MODEL --inspect: what a checkpoint is and what a token of it costs."""

from __future__ import annotations

from typing import Any

from engine.cli import Parser, run
from engine.errors import UsageError


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m engine", "Look into a model's folder without loading its weights.")
    result.add_model_options()
    result.add_argument("--inspect", action="store_true", help="print family, shapes, tokens and costs")
    result.add_argument("--context", type=int, help="tokens before the one whose cost is shown (default: 1024)")
    return result


def main(options: Any) -> None:
    """Print the tables of every model named."""
    if not options.inspect or not options.model:
        raise UsageError("say what to do: --model MODEL --inspect")
    from rich.console import Console

    from engine.inspection import inspect

    console = Console()
    for name in options.model:
        for table in inspect(name, options.dtype, options.context):
            console.print(table)


if __name__ == "__main__":
    run(parser(), main)
