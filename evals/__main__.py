"""python -m evals: list the benchmarks and programs; `python -m evals NAME` is the same as `python -m evals.NAME`."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.cli.parser import Parser, run
from evals.data.catalogue import BENCHMARKS, Benchmark

PROGRAMS = {
    "mt_bench": "MT-Bench: conversations of two turns, whose answers a model judges",
    "run": "every benchmark with every model in every weight format, resumable",
    "compare": "statistics of the mistakes of several models",
    "plots": "plots of accuracies, mistakes, confidence and costs",
    "report": "tables, plots and every question in one HTML file",
    "timing": "MMLU on every device and in every weight format",
    "quantization": "what a weight format costs in quality, and what it saves",
}


def parser() -> Parser:
    """Return the parser of the overview."""
    result = Parser("python -m evals", "List the benchmarks and whether their data is cached, or run a program.")
    names = (*BENCHMARKS, *PROGRAMS)
    result.add_argument(
        "program", nargs="?", choices=names, metavar="PROGRAM", help=f"{', '.join(names)}; its flags follow"
    )
    return result


def main(_: Any) -> None:
    """Print the tables of benchmarks and programs, and the cached models."""
    from rich.table import Table

    from evals.harness.program import print_table

    table = Table("benchmark", "about", "examples", "data set", "cached")
    for benchmark in BENCHMARKS.values():
        cached = "yes" if is_cached(benchmark) else "no"
        table.add_row(f"evals.{benchmark.name}", benchmark.about, str(benchmark.shots), benchmark.data, cached)
    print_table("Benchmarks: python -m evals.NAME --model MODEL (--help lists the flags)", table)
    others = Table("program", "about")
    for name, about in PROGRAMS.items():
        others.add_row("evals run" if name == "run" else f"evals.{name}", about)
    print_table("Other programs", others)
    print(f"models in the hub's cache: {', '.join(cached_models()) or 'none'}")


def is_cached(benchmark: Benchmark) -> bool:
    """Return whether `datasets` can load the benchmark's data set from the hub's cache."""
    home = Path(os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser())
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets")
    owner, _, name = benchmark.data.partition("/")
    return any((cache / f"{owner}___{snake_case(name)}").glob("*"))


def snake_case(name: str) -> str:
    """Return a data set's name as `datasets` writes it in folder names."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def cached_models() -> list[str]:
    """Return the ids of the models in the hub's cache."""
    home = Path(os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser())
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))


def dispatch(arguments: Sequence[str]) -> None:
    """Run the program that the first argument names, or the overview."""
    name, *rest = arguments or [""]
    if name in BENCHMARKS or name in PROGRAMS:
        program = importlib.import_module(f"evals.{name}")
        run(program.parser(), program.main, rest)
    run(parser(), main, arguments)


if __name__ == "__main__":
    dispatch(sys.argv[1:])
