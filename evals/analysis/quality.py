"""The table of weight formats (python -m evals.quantization): read rows, compare, print. Pure: no model, no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.runtime.errors import BareloopError
from evals.runs.measurements import markdown_table

if TYPE_CHECKING:
    from rich.table import Table

MAX_LOSS = 700.0  # nats; exp() of more overflows


@dataclass(frozen=True)
class FormatResult:
    """Measurements of one weight format. `mmlu` is None if it was not scored, `mmlu_stderr` if one question was."""

    format: str
    nbytes: int  # of all weights
    bits: float  # per weight, scales included
    perplexity: float
    agreement: float  # fraction of positions with the same most likely next token as the unquantized model
    tokens_per_second: float
    load_seconds: float
    mmlu: float | None = None
    mmlu_stderr: float | None = None


def perplexity(loss: float, tokens: int) -> float:
    """Return exp(`loss` / `tokens`), where `loss` is the sum of the negative log-likelihoods in nats."""
    return math.exp(min(loss / tokens, MAX_LOSS))


def read_rows(path: Path, lines: Sequence[str], settings: Mapping[str, Any]) -> dict[str, FormatResult]:
    """Parse the lines of a file into results by format; keep those of these settings, the first of each format.

    Raises `BareloopError` for a line that is not a result.
    """
    rows: dict[str, FormatResult] = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if entry.pop("settings") == settings:
                row = FormatResult(**entry)
                rows.setdefault(row.format, row)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise BareloopError(
                f"{path}, line {number} is not a row of this program; repair or move the file"
            ) from None
    return rows


def changes(row: FormatResult, plain: FormatResult) -> dict[str, float | None]:
    """Return the changes from the unquantized model: of the perplexity in percent, of the accuracy in points."""
    points = None if row.mmlu is None or plain.mmlu is None else 100 * (row.mmlu - plain.mmlu)
    return {"perplexity_change": 100 * (row.perplexity / plain.perplexity - 1), "mmlu_change": points}


def table_rows(rows: Sequence[FormatResult]) -> list[dict[str, str]]:
    """Return the table's rows as {column: text}. The first row is the unquantized model."""
    plain, lines = rows[0], []
    for row in rows:
        percent, points = changes(row, plain).values()
        line = {
            "format": row.format,
            "MB": f"{row.nbytes / 1e6:,.{0 if row.nbytes >= 1e9 else 1}f}",
            "bits/weight": f"{row.bits:.2f}",
            "perplexity": f"{row.perplexity:.3f}",
            "change, %": "" if row is plain else f"{percent:+.2f}",
        }
        if row.mmlu is not None and points is not None:
            error = "" if row.mmlu_stderr is None else f" ± {100 * row.mmlu_stderr:.1f}"
            line["MMLU, %"] = f"{100 * row.mmlu:.1f}{error}"
            line["points"] = "" if row is plain else f"{points:+.2f}"
        line["agree, %"] = f"{100 * row.agreement:.2f}"
        line["tokens/s"] = f"{row.tokens_per_second:,.1f}"
        line["load, s"] = f"{row.load_seconds:.2f}"
        lines.append(line)
    return lines


def table(rows: Sequence[FormatResult]) -> Table:
    """Return the table for a terminal; it fits 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    lines = table_rows(rows)
    result = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for head in lines[0]:
        folded = head.replace(", ", "\n").replace("/", "/\n")
        result.add_column(folded, justify="left" if head == "format" else "right")
    for line in lines:
        result.add_row(*line.values())
    return result


def markdown(title: str, facts: Sequence[str], rows: Sequence[FormatResult], missing: Mapping[str, str]) -> str:
    """Return a Markdown document: title, facts, table. `missing`: reasons by format that was not measured."""
    lines = table_rows(rows)
    table = markdown_table(list(lines[0]), [list(line.values()) for line in lines], 1)
    notes = [f"{name} was not measured: {reason}" for name, reason in missing.items()]
    return "\n\n".join([f"# {title}", *facts, "\n".join(table), *notes]) + "\n"


def as_json(facts: Mapping[str, Any], rows: Sequence[FormatResult], missing: Mapping[str, str]) -> str:
    """Return facts, results with their changes, and missing formats as one JSON object."""
    formats = [{**asdict(row), **changes(row, rows[0])} for row in rows]
    return json.dumps({**facts, "formats": formats, "missing": missing}, indent=2, ensure_ascii=False) + "\n"
