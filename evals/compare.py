"""python -m evals.compare: what the mistakes of several models have in common, in words and in tables. No torch."""

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
from evals.analysis.findings import notes, words
from evals.analysis.patterns import Paired, SubjectRow
from evals.analysis.statistics import holm
from evals.runs.collection import groups, load, parts


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All numbers of a comparison; what cannot be said is null."""
    group = comparison.group
    tables = ("overall", "overlaps", "choice_bias", "calibration", "hardest")
    return {
        "title": group.title,
        "task": group.task,
        "questions": len(group.keys),
        "runs": [{"label": own.label, "file": str(own.path), "model": own.header["model"]} for own in group.runs],
        "words": words(comparison),
        "notes": notes(comparison),
        **{name: [_finite(asdict(row)) for row in getattr(comparison, name)] for name in tables},
        "subjects": _tested(comparison.subjects),
        "paired": _tested(comparison.paired),
        "misses": asdict(comparison.misses),
        "alike": comparison.alike,
    }


def _tested(rows: Sequence[SubjectRow | Paired]) -> list[dict[str, Any]]:
    """With p-values that are corrected for so many tests."""
    return [asdict(row) | {"p_corrected": p} for row, p in zip(rows, holm([row.p for row in rows]), strict=True)]


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m evals.compare", "What the mistakes of several models have in common.")
    result.add_argument("results", nargs="*", default=["results"], help="run files and folders (default: results)")
    result.add_argument(
        "--permutations", type=int, default=PERMUTATIONS, metavar="N", help=f"of the test (default: {PERMUTATIONS:,})"
    )
    result.add_argument("--seed", type=int, default=SEED, help=f"of the permutations (default: {SEED})")
    result.add_argument(
        "--hardest", type=int, default=HARDEST, metavar="N", help=f"show the N hardest questions (default: {HARDEST})"
    )
    result.add_argument("--json", metavar="FILE", help="write all numbers to this file")
    result.add_argument("--markdown", metavar="FILE", help="write words and tables to this file")
    return result


def main(options: Any) -> None:
    """Compare, tell, write."""
    from evals.analysis.tables import markdown, show

    if not 100 <= options.permutations <= 1_000_000:
        raise UsageError(f"--permutations {options.permutations}: use 100 to 1,000,000")
    for flag in ("seed", "hardest"):
        if getattr(options, flag) < 0:
            raise UsageError(f"--{flag} {getattr(options, flag)}: use 0 or more")
    runs = load(options.results)
    sources = {path.resolve() for own in runs for path in (own.path, own.questions_file)}
    outputs = {flag: local_path(name) for flag in ("json", "markdown") if (name := getattr(options, flag))}
    for flag, path in outputs.items():
        if path.resolve() in sources:
            raise UsageError(f"--{flag} {path} is one of the files that are compared; name another")
    found = groups(runs, least=2)
    compared = {own.path for group in found for own in group.runs}
    for alone in (own for own in runs if own.path not in compared):
        print(f"left out: {alone.path}: there is no other run of its benchmark in its setting", file=sys.stderr)
    comparisons = []
    for group in (part for whole in found for part in parts(whole)):
        comparisons.append(compare(group, options.permutations, options.seed, options.hardest))
        show(comparisons[-1])
    if "json" in outputs:
        told = {"permutations": options.permutations, "seed": options.seed, "groups": list(map(as_json, comparisons))}
        write_atomic(outputs["json"], json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if "markdown" in outputs:
        write_atomic(outputs["markdown"], "\n\n".join(map(markdown, comparisons)) + "\n")


if __name__ == "__main__":
    run(parser(), main)
