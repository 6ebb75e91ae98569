"""Measurements of a timing study: their file and their table."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from engine.runtime.errors import BareloopError
from evals.runs.measurements import (
    Configuration,
    Measurement,
    MeasurementFile,
    Result,
    heading,
    markdown_table,
    speedups,
    table,
    unmeasured,
)

ONE = Measurement(
    questions=10, accuracy=0.5, stderr=0.1667, tokens=2651, load=0.1, real=2.0, cpu=3.9, gpu=None, cycles=None,
    peak_memory=300_000_000, gpu_memory=None, weights=19_000_000,
)  # fmt: skip
ON_GPU = replace(ONE, real=0.25, gpu=0.2, gpu_memory=50_000_000)
RESULTS = [
    Result(Configuration("cpu", "none"), ONE),
    Result(Configuration("cpu", "int8"), replace(ONE, real=1.0, stderr=None)),
    Result(Configuration("cpu", "nf4"), reason="out of | memory"),
    Result(Configuration("cuda", "int4"), ON_GPU),
    Result(Configuration("mps", "none"), reason="not available"),
    Result(Configuration("mps", "int8"), reason="not available"),
]
CPU_PLAIN, CUDA_INT4 = RESULTS[0].configuration, RESULTS[3].configuration
SETTINGS = {"shots": 5, "subjects": ["astronomy"], "format": "float32"}


def test_speedups_are_relative_to_unquantized_weights_on_the_same_device():
    assert speedups(RESULTS) == {CPU_PLAIN: 1.0, Configuration("cpu", "int8"): 2.0}


def test_the_table_has_a_row_for_each_measured_configuration():
    heads, lines = table(RESULTS)
    rows = [dict(zip(heads, line, strict=True)) for line in lines]
    assert [(row["device"], row["format"]) for row in rows] == [("cpu", "none"), ("cpu", "int8"), ("cuda", "int4")]
    assert [row["accuracy %"] for row in rows] == ["50.00 ± 16.67", "50.00", "50.00 ± 16.67"]
    assert [row["speed-up"] for row in rows] == ["1.00", "2.00", ""]
    assert [row["GPU s"] for row in rows] == ["", "", "0.20"]
    assert [row["GPU MB"] for row in rows] == ["", "", "50"]
    assert {name: rows[0][name] for name in ("load s", "real s", "CPU s", "peak MB", "weights MB")} == {
        "load s": "0.10", "real s": "2.00", "CPU s": "3.90", "peak MB": "300", "weights MB": "19.0",
    }  # fmt: skip


def test_the_gpu_columns_appear_only_with_gpu_measurements():
    assert not [head for head in table(RESULTS[:3])[0] if "GPU" in head]


def test_each_device_lists_its_plain_run_first_whatever_order_was_measured():
    measured = [("cuda", "llm.int8"), ("cuda", "int4"), ("cpu", "int8"), ("cuda", "none"), ("cpu", "none")]
    results = [Result(Configuration(*names), ONE) for names in measured]
    expected = [("cuda", "none"), ("cuda", "int4"), ("cuda", "llm.int8"), ("cpu", "none"), ("cpu", "int8")]
    assert [tuple(line[:2]) for line in table(results)[1]] == expected
    failed = [Result(Configuration("mps", name), reason="not available") for name in ("int4", "none", "int8")]
    assert unmeasured(failed) == [["mps", "none, int8, int4", "not available"]]


def test_unmeasured_formats_are_listed_once_for_each_reason():
    rows = unmeasured(RESULTS)
    assert rows == [["cpu", "nf4", "out of | memory"], ["mps", "none, int8", "not available"]]
    assert markdown_table(["device", "format", "s"], rows, 2) == [
        "| device | format | s |",
        "| --- | --- | ---: |",
        "| cpu | nf4 | out of \\| memory |",
        "| mps | none, int8 | not available |",
    ]


def test_the_heading_names_few_subjects_and_counts_many():
    assert heading(SETTINGS, RESULTS[2:]) == "5-shot, astronomy, 10 questions, 2,651 tokens, float32"
    assert "57 subjects, " in heading(SETTINGS | {"subjects": ["one"] * 57}, RESULTS)


def test_stored_measurements_are_found_only_with_the_same_settings(tmp_path):
    path = tmp_path / "model" / "timing.jsonl"
    with MeasurementFile(path, SETTINGS) as file:
        assert file.measurements == {}
        file.append(CPU_PLAIN, ONE)
        file.append(CUDA_INT4, ON_GPU)
    with path.open("a") as text:
        text.write('{"settings": {"sh')  # what a killed process leaves
    with MeasurementFile(path, SETTINGS) as file:
        assert file.measurements == {CPU_PLAIN: ONE, CUDA_INT4: ON_GPU}
    with MeasurementFile(path, SETTINGS | {"shots": 0}) as file:
        assert file.measurements == {}
        file.append(CPU_PLAIN, ON_GPU)
    with MeasurementFile(path, SETTINGS) as file:
        assert file.measurements[CPU_PLAIN] == ONE
    assert len(path.read_text().splitlines()) == 3


def test_fresh_renames_the_old_file(tmp_path):
    path = tmp_path / "timing.jsonl"
    path.write_text("damaged\n")
    with pytest.raises(BareloopError, match=r"timing.jsonl, line 1 is not a measurement; .*--fresh"):
        MeasurementFile(path, SETTINGS)
    with MeasurementFile(path, SETTINGS, fresh=True) as file:
        assert file.measurements == {}
        file.append(CPU_PLAIN, ONE)
    assert len(path.read_text().splitlines()) == 1
    (old,) = tmp_path.glob("timing.jsonl.*.old")
    assert old.read_text() == "damaged\n"


@pytest.mark.parametrize("line", ["[]", "{}", '{"settings": {}, "cell": {"device": "cpu"}, "measured": {}}'])
def test_a_damaged_line_is_reported_with_its_number(tmp_path, line):
    (tmp_path / "timing.jsonl").write_text(line + "\n")
    with pytest.raises(BareloopError, match="line 1 is not a measurement"):
        MeasurementFile(tmp_path / "timing.jsonl", {})


def test_a_file_that_another_process_is_writing_is_refused(tmp_path):
    path = tmp_path / "timing.jsonl"
    with MeasurementFile(path, SETTINGS), pytest.raises(BareloopError, match="another process is writing"):
        MeasurementFile(path, SETTINGS)


def test_a_stored_line_keeps_the_keys_of_earlier_versions(tmp_path):
    with MeasurementFile(tmp_path / "timing.jsonl", SETTINGS) as file:
        file.append(CPU_PLAIN, ONE)
    line = json.loads((tmp_path / "timing.jsonl").read_text())
    assert line["cell"] == {"device": "cpu", "format": "none"}
    assert line["measured"]["real"] == 2.0
    assert line["settings"] == SETTINGS
