"""The table of weight formats: parsing, changes, Markdown, JSON, the terminal."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from engine.runtime.errors import BareloopError
from evals.analysis.quality import FormatResult, as_json, changes, markdown, perplexity, read_rows, table, table_rows

PLAIN = FormatResult("none", 2_000_000_000, 16.0, 8.0, 1.0, 40.0, 1.25, 0.5, 0.02)
SMALL = FormatResult("int4", 562_500_000, 4.5, 8.4, 0.925, 1100.0, 0.5, 0.475, 0.021)


def test_the_perplexity_of_a_fair_die_is_6_and_huge_losses_stay_finite():
    assert perplexity(10 * math.log(6), 10) == pytest.approx(6)
    assert math.isfinite(perplexity(1e9, 10))


def test_perplexity_changes_are_percent_and_accuracy_changes_points():
    result = changes(SMALL, PLAIN)
    assert result["perplexity_change"] == pytest.approx(5)
    assert result["mmlu_change"] == pytest.approx(-2.5)
    assert changes(replace(SMALL, mmlu=None), PLAIN)["mmlu_change"] is None


def test_rows_are_formatted_and_the_plain_row_has_no_changes():
    plain, small = table_rows([PLAIN, SMALL])
    assert list(small.values()) == [
        "int4", "562.5", "4.50", "8.400", "+5.00", "47.5 ± 2.1", "-2.50", "92.50", "1,100.0", "0.50"
    ]  # fmt: skip
    assert (plain["MB"], plain["change, %"], plain["points"]) == ("2,000", "", "")
    assert table_rows([replace(PLAIN, mmlu_stderr=None)])[0]["MMLU, %"] == "50.0"
    assert not {"MMLU, %", "points"} & table_rows([replace(PLAIN, mmlu=None)])[0].keys()


def test_the_table_fits_80_columns():
    console = Console(width=80, record=True, file=StringIO())
    console.print(table([PLAIN, replace(SMALL, format="llm.int8")]))
    shown = console.export_text()
    assert "…" not in shown
    assert len([line for line in shown.splitlines() if line.strip()]) == 5


def test_markdown_holds_the_facts_the_table_and_missing_formats():
    text = markdown("Weight formats of a model", ["    the command", "a date"], [PLAIN, SMALL], {"nf4": "no reason"})
    lines = text.splitlines()
    assert lines[:5] == ["# Weight formats of a model", "", "    the command", "", "a date"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0][:2] == ["format", "MB"]
    assert set(rows[1]) == {"---", "---:"}
    assert [row[0] for row in rows[2:]] == ["none", "int4"]
    assert {len(row) for row in rows} == {10}
    assert lines[-1] == "nf4 was not measured: no reason"


def test_json_holds_all_numbers_and_the_changes():
    found = json.loads(as_json({"model": "m"}, [PLAIN, SMALL], {"nf4": "no reason"}))
    assert (found["model"], found["missing"]) == ("m", {"nf4": "no reason"})
    assert found["formats"][1] == asdict(SMALL) | changes(SMALL, PLAIN)


def test_only_the_first_row_of_a_format_with_the_same_settings_counts():
    lines = [
        json.dumps({"settings": settings, **asdict(row)})
        for settings, row in [({"window": 2}, PLAIN), ({"window": 1}, SMALL), ({"window": 1}, replace(SMALL, bits=9.0))]
    ]
    assert read_rows(Path("rows"), lines, {"window": 1}) == {"int4": SMALL}


@pytest.mark.parametrize("line", ["", "[]", "{}", "torn", json.dumps({"settings": {}, "format": "int8"})])
def test_a_damaged_line_is_reported_with_its_number(line):
    with pytest.raises(BareloopError, match="rows, line 1 is not a row of this program"):
        read_rows(Path("rows"), [line], {})
