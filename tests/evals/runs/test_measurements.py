"""The cells of a timing study: what is kept of them, and what is told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from engine.runtime.errors import BareloopError
from evals.runs.measurements import Cell, Measured, Row, Store, draw, heading, markdown, speedups, table, unmeasured

ONE = Measured(
    questions=10, accuracy=0.5, stderr=0.1667, tokens=2651, load=0.1, real=2.0, cpu=3.9, gpu=None, cycles=None,
    peak_memory=300_000_000, gpu_memory=None, weights=19_000_000,
)  # fmt: skip
ON_GPU = replace(ONE, real=0.25, gpu=0.2, gpu_memory=50_000_000)
ROWS = [
    Row(Cell("cpu", "none"), ONE),
    Row(Cell("cpu", "int8"), replace(ONE, real=1.0, stderr=None)),
    Row(Cell("cpu", "nf4"), reason="out of | memory"),
    Row(Cell("cuda", "int4"), ON_GPU),
    Row(Cell("mps", "none"), reason="not here"),
    Row(Cell("mps", "int8"), reason="not here"),
]
SETTINGS = {"shots": 5, "subjects": ["astronomy"], "format": "float32"}


def test_a_cell_is_as_many_times_as_fast_as_the_plain_one_of_its_device():
    assert speedups(ROWS) == {Cell("cpu", "none"): 1.0, Cell("cpu", "int8"): 2.0}


def test_the_table_has_a_line_for_each_cell_that_was_measured():
    heads, lines = table(ROWS)
    told = [dict(zip(heads, line, strict=True)) for line in lines]
    assert [(line["device"], line["format"]) for line in told] == [("cpu", "none"), ("cpu", "int8"), ("cuda", "int4")]
    assert [line["accuracy %"] for line in told] == ["50.00 ± 16.67", "50.00", "50.00 ± 16.67"]
    assert [line["speed-up"] for line in told] == ["1.00", "2.00", ""]
    assert [line["GPU s"] for line in told] == ["", "", "0.20"]
    assert [line["GPU MB"] for line in told] == ["", "", "50"]
    assert {name: told[0][name] for name in ("load s", "real s", "CPU s", "peak MB", "weights MB")} == {
        "load s": "0.10", "real s": "2.00", "CPU s": "3.90", "peak MB": "300", "weights MB": "19.0",
    }  # fmt: skip


def test_without_a_gpu_there_are_no_columns_for_it():
    assert not [head for head in table(ROWS[:3])[0] if "GPU" in head]


def test_what_was_not_measured_is_listed_once_for_each_reason():
    listed = unmeasured(ROWS)
    assert listed == [["cpu", "nf4", "out of | memory"], ["mps", "none, int8", "not here"]]
    assert markdown(["device", "format", "s"], listed, 2) == [
        "| device | format | s |",
        "| --- | --- | ---: |",
        "| cpu | nf4 | out of \\| memory |",
        "| mps | none, int8 | not here |",
    ]


def test_the_heading_names_few_subjects_and_counts_many():
    assert heading(SETTINGS, ROWS[2:]) == "5-shot, astronomy, 10 questions, 2,651 tokens, float32"
    assert "57 subjects, " in heading(SETTINGS | {"subjects": ["one"] * 57}, ROWS)


@pytest.mark.parametrize("count", [1, 18])
def test_the_picture_names_every_cell_with_its_accuracy(tmp_path, count):
    rows = [Row(Cell(f"cuda:{place}", "none"), replace(ON_GPU, accuracy=place / 100)) for place in range(count)]
    draw([*rows, ROWS[-1]], "a title", tmp_path / "timing")
    assert (tmp_path / "timing.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "timing.svg").read_text()
    for place in range(count):
        assert f"<!-- cuda:{place} none -->" in text
        assert f"<!-- 0.25 s, {place:.2f} ± 16.67 % -->" in text
    assert text.count("<!-- 50 MB -->") == count
    assert "mps" not in text


def test_what_is_stored_is_found_with_the_same_settings_alone(tmp_path):
    path = tmp_path / "model" / "timing.jsonl"
    with Store(path, SETTINGS) as store:
        assert store.found == {}
        store.append(ROWS[0].cell, ONE)
        store.append(ROWS[3].cell, ON_GPU)
    with path.open("a") as file:
        file.write('{"settings": {"sh')  # what a kill leaves
    with Store(path, SETTINGS) as store:
        assert store.found == {ROWS[0].cell: ONE, ROWS[3].cell: ON_GPU}
    with Store(path, SETTINGS | {"shots": 0}) as store:
        assert store.found == {}
        store.append(ROWS[0].cell, ON_GPU)
    with Store(path, SETTINGS) as store:
        assert store.found[ROWS[0].cell] == ONE
    assert len(path.read_text().splitlines()) == 3


def test_fresh_puts_aside_what_was_there(tmp_path):
    path = tmp_path / "timing.jsonl"
    path.write_text("damaged\n")
    with pytest.raises(BareloopError, match=r"timing.jsonl, line 1 is no cell of a study; .*--fresh"):
        Store(path, SETTINGS)
    with Store(path, SETTINGS, fresh=True) as store:
        assert store.found == {}
        store.append(ROWS[0].cell, ONE)
    assert len(path.read_text().splitlines()) == 1
    (old,) = tmp_path.glob("timing.jsonl.*.old")
    assert old.read_text() == "damaged\n"


@pytest.mark.parametrize("line", ["[]", "{}", '{"settings": {}, "cell": {"device": "cpu"}, "measured": {}}'])
def test_a_line_that_is_no_cell_is_told(tmp_path, line):
    (tmp_path / "timing.jsonl").write_text(line + "\n")
    with pytest.raises(BareloopError, match="line 1 is no cell"):
        Store(tmp_path / "timing.jsonl", {})


def test_a_study_that_another_process_is_writing_is_left_alone(tmp_path):
    with (
        Store(tmp_path / "timing.jsonl", SETTINGS),
        pytest.raises(BareloopError, match="another process is writing"),
    ):
        Store(tmp_path / "timing.jsonl", SETTINGS)


def test_a_stored_line_is_plain_json(tmp_path):
    with Store(tmp_path / "timing.jsonl", SETTINGS) as store:
        store.append(ROWS[0].cell, ONE)
    told = json.loads((tmp_path / "timing.jsonl").read_text())
    assert told["cell"] == {"device": "cpu", "format": "none"}
    assert told["measured"]["real"] == 2.0
    assert told["settings"] == SETTINGS
