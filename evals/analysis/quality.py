"""Rows of the table of weight formats: read, compared, told. Pure: no model, no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.runtime.errors import BareloopError

if TYPE_CHECKING:
    from rich.table import Table

MOST = 700.0  # nats; the exponential of more is no number


@dataclass(frozen=True)
class Row:
    """What is measured of one format. MMLU is None where it was left out, its error for a single question."""

    format: str
    nbytes: int  # of all weights
    bits: float  # of a weight, with its share of the scales
    perplexity: float
    agreement: float  # the share of places whose likeliest next token is the unquantized model's
    tokens_per_second: float
    load_seconds: float
    mmlu: float | None = None
    mmlu_stderr: float | None = None


def perplexity(loss: float, tokens: int) -> float:
    """The exponential of the mean surprise of so many tokens; `loss` is its sum, in nats."""
    return math.exp(min(loss / tokens, MOST))


def read_rows(path: Path, lines: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Row]:
    """The finished rows of these settings by format, from the lines of a file; the first of each counts."""
    rows: dict[str, Row] = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if entry.pop("settings") == settings:
                row = Row(**entry)
                rows.setdefault(row.format, row)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise BareloopError(f"{path}, line {number} is no row of this program; repair or move it") from None
    return rows


def changes(row: Row, plain: Row) -> dict[str, float | None]:
    """Of the perplexity in percent, and of the accuracy in points, against the unquantized model's."""
    points = None if row.mmlu is None or plain.mmlu is None else 100 * (row.mmlu - plain.mmlu)
    return {"perplexity_change": 100 * (row.perplexity / plain.perplexity - 1), "mmlu_change": points}


def cells(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The table, a line for each format, by the heads of its columns; the first row is the unquantized model's."""
    lines = []
    for row in rows:
        percent, points = changes(row, rows[0]).values()
        line = {
            "format": row.format,
            "MB": f"{row.nbytes / 1e6:,.{0 if row.nbytes >= 1e9 else 1}f}",
            "bits/weight": f"{row.bits:.2f}",
            "perplexity": f"{row.perplexity:.3f}",
            "change, %": "" if row is rows[0] else f"{percent:+.2f}",
        }
        if row.mmlu is not None and points is not None:
            error = "" if row.mmlu_stderr is None else f" ± {100 * row.mmlu_stderr:.1f}"
            line["MMLU, %"] = f"{100 * row.mmlu:.1f}{error}"
            line["points"] = "" if row is rows[0] else f"{points:+.2f}"
        line["agree, %"] = f"{100 * row.agreement:.2f}"
        line["tokens/s"] = f"{row.tokens_per_second:,.1f}"
        line["load, s"] = f"{row.load_seconds:.2f}"
        lines.append(line)
    return lines


def table(rows: Sequence[Row]) -> Table:
    """The table for a terminal, narrow enough for 80 letters."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    lines = cells(rows)
    result = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for head in lines[0]:
        narrow = head.replace(", ", "\n").replace("/", "/\n")
        result.add_column(narrow, justify="left" if head == "format" else "right")
    for line in lines:
        result.add_row(*line.values())
    return result


def markdown(title: str, facts: Sequence[str], rows: Sequence[Row], missing: Mapping[str, str]) -> str:
    """The table for GitHub, under its title and what is to be known of it, above the formats that are not in it."""
    lines = cells(rows)
    heads = list(lines[0])
    listed = [heads, ["---", *["---:"] * (len(heads) - 1)], *(list(line.values()) for line in lines)]
    parts = [f"# {title}", *facts, "\n".join(f"| {' | '.join(line)} |" for line in listed)]
    return "\n\n".join([*parts, *(f"{form} is not here: {why}" for form, why in missing.items())]) + "\n"


def as_json(facts: Mapping[str, Any], rows: Sequence[Row], missing: Mapping[str, str]) -> str:
    """All of it as one object."""
    listed = [{**asdict(row), **changes(row, rows[0])} for row in rows]
    return json.dumps({**facts, "formats": listed, "missing": missing}, indent=2, ensure_ascii=False) + "\n"
