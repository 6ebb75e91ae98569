"""python -m evals: the benchmarks that there are, and whether their data is here; `run` scores many cells."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from engine.cli.parser import Parser, run
from evals import run as matrix
from evals.data.catalogue import BENCHMARKS, Benchmark

PROGRAMS = {
    "run": "every benchmark by every model by every weight format, resumable",
    "compare": "what the mistakes of two or more models say",
    "plots": "the same in pictures",
    "report": "all of it in one HTML file",
    "timing": "MMLU by device and weight format",
    "quantization": "what a weight format costs",
}


def parser() -> Parser:
    """The program's flags: none of its own."""
    return Parser("python -m evals", "List the benchmarks, and what of their data is cached. `run` scores many cells.")


def main(_: Any) -> None:
    """The tables."""
    from rich.table import Table

    from evals.harness.program import print_table

    table = Table("benchmark", "what", "examples", "data set", "cached")
    for own in BENCHMARKS.values():
        table.add_row(f"evals.{own.name}", own.about, str(own.shots), own.data, "yes" if is_cached(own) else "no")
    print_table("Benchmarks: python -m evals.NAME --model MODEL (--help tells the flags)", table)
    others = Table("program", "what")
    for name, about in PROGRAMS.items():
        others.add_row("evals run" if name == "run" else f"evals.{name}", about)
    print_table("Beside them", others)
    print(f"models in the hub's cache: {', '.join(cached_models()) or 'none'}")


def is_cached(benchmark: Benchmark) -> bool:
    """Whether its data set has been fetched from the hub: what `datasets` needs to load it offline."""
    home = Path(os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser())
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets")
    owner, _, name = benchmark.data.partition("/")
    return any((cache / f"{owner}___{snake_case(name)}").glob("*"))


def snake_case(name: str) -> str:
    """As `datasets` names its folders."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def cached_models() -> list[str]:
    """Models that have been fetched from the hub."""
    home = Path(os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser())
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(matrix.parser(), matrix.main, sys.argv[2:])
    run(parser(), main)
