"""python -m evals.compare: statistics of the mistakes of several models, as sentences and tables. No torch."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from engine.cli.parser import Parser, run
from engine.runtime.errors import UsageError
from engine.runtime.files import local_path, write_atomic
from evals.analysis.comparison import HARDEST, PERMUTATIONS, SEED, Comparison, compare
from evals.analysis.findings import findings, notes
from evals.analysis.patterns import PairedDifference, SubjectRow
from evals.analysis.statistics import holm_correction
from evals.runs.collection import group_runs, load_runs, split_unpooled


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return all numbers of a comparison for JSON; NaN becomes None."""
    group = comparison.group
    tables = ("overall", "overlaps", "choice_bias", "calibration", "hardest")
    return {
        "title": group.title,
        "task": group.task,
        "questions": len(group.keys),
        "runs": [{"label": run.label, "file": str(run.path), "model": run.header["model"]} for run in group.runs],
        "words": findings(comparison),
        "notes": notes(comparison),
        **{name: [_without_nan(asdict(row)) for row in getattr(comparison, name)] for name in tables},
        "subjects": _with_corrected_p(comparison.subjects),
        "paired": _with_corrected_p(comparison.paired),
        "misses": asdict(comparison.misses),
        "alike": comparison.alike,
    }


def _with_corrected_p(rows: Sequence[SubjectRow | PairedDifference]) -> list[dict[str, Any]]:
    corrected = holm_correction([row.p for row in rows])
    return [asdict(row) | {"p_corrected": p} for row, p in zip(rows, corrected, strict=True)]


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def parser() -> Parser:
    """Return the program's parser."""
    result = Parser("python -m evals.compare", "Compare the mistakes of several models.")
    result.add_argument("results", nargs="*", default=["results"], help="run files and folders (default: results)")
    result.add_argument(
        "--permutations",
        type=int,
        default=PERMUTATIONS,
        metavar="N",
        help=f"permutations of the test (default: {PERMUTATIONS:,})",
    )
    result.add_argument("--seed", type=int, default=SEED, help=f"seed of the permutations (default: {SEED})")
    result.add_argument(
        "--hardest", type=int, default=HARDEST, metavar="N", help=f"show the N hardest questions (default: {HARDEST})"
    )
    result.add_argument("--json", metavar="FILE", help="write all numbers to this file")
    result.add_argument("--markdown", metavar="FILE", help="write findings and tables to this file")
    return result


def main(options: Any) -> None:
    """Compare the runs of each group, print the results and write the files that were asked for."""
    from evals.analysis.tables import markdown, print_comparison

    if not 100 <= options.permutations <= 1_000_000:
        raise UsageError(f"--permutations {options.permutations}: use 100 to 1,000,000")
    for flag in ("seed", "hardest"):
        if getattr(options, flag) < 0:
            raise UsageError(f"--{flag} {getattr(options, flag)}: use 0 or more")
    runs = load_runs(options.results)
    sources = {path.resolve() for run in runs for path in (run.path, run.questions_file)}
    outputs = {flag: local_path(name) for flag in ("json", "markdown") if (name := getattr(options, flag))}
    for flag, path in outputs.items():
        if path.resolve() in sources:
            raise UsageError(f"--{flag} {path} is one of the compared files; name another")
    groups = group_runs(runs, min_runs=2)
    compared = {run.path for group in groups for run in group.runs}
    for single in runs:
        if single.path not in compared:
            print(f"skipped: {single.path}: there is no other run of its benchmark in its setting", file=sys.stderr)
    comparisons = []
    for part in (part for group in groups for part in split_unpooled(group)):
        comparisons.append(compare(part, options.permutations, options.seed, options.hardest))
        print_comparison(comparisons[-1])
    if "json" in outputs:
        content = {
            "permutations": options.permutations,
            "seed": options.seed,
            "groups": [as_json(comparison) for comparison in comparisons],
        }
        write_atomic(outputs["json"], json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if "markdown" in outputs:
        write_atomic(outputs["markdown"], "\n\n".join(map(markdown, comparisons)) + "\n")


if __name__ == "__main__":
    run(parser(), main)
