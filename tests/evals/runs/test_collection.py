"""Loading and grouping runs: their order, their labels, and what cannot be compared."""

from __future__ import annotations

from itertools import permutations

import pytest

from engine.quant import QUANTS
from engine.runtime.errors import BareloopError
from evals.runs.collection import format_rank, group_runs, in_order, load_runs, split_unpooled
from tests.evals.synthetic import write_runs

SMALL = {"anatomy": 2}


def test_each_model_s_plain_run_comes_before_its_weight_formats(tmp_path):
    for quant in ("nf4", "int4", "int8", "none"):
        write_runs(tmp_path, {"b": 0.5, "a": 0.5}, subjects=SMALL, quant=quant)
    runs = load_runs([str(tmp_path)])
    expected = ["a", "a int8", "a int4", "a nf4", "b", "b int8", "b int4", "b nf4"]
    assert [run.label for run in runs] == expected
    (group,) = group_runs(runs)
    assert [run.label for run in group.runs] == expected


def test_the_order_does_not_depend_on_how_the_files_were_given(tmp_path):
    paths = [write_runs(tmp_path, {"a": 0.5}, subjects=SMALL, quant=quant)[0] for quant in ("none", "int8", "int4")]
    for given in permutations(paths):
        assert [run.header["quant"] for run in load_runs([*map(str, given)])] == ["none", "int8", "int4"]


def test_plain_runs_on_all_devices_come_before_weight_formats(tmp_path):
    for device in ("cuda", "cpu"):
        for quant in ("none", "int8"):
            write_runs(tmp_path, {"a": 0.5}, subjects=SMALL, quant=quant, device=device)
    (group,) = group_runs(load_runs([str(tmp_path)]))
    assert [run.label for run in group.runs] == ["a cpu", "a cuda", "a int8 cpu", "a int8 cuda"]


def test_models_keep_the_order_in_which_they_were_given(tmp_path):
    first, second = write_runs(tmp_path, {"z": 0.5, "a": 0.5}, subjects=SMALL)
    quantized, _ = write_runs(tmp_path, {"z": 0.5, "a": 0.5}, subjects=SMALL, quant="int8")
    runs = load_runs([str(quantized), str(second), str(first)])
    assert [run.label for run in runs] == ["z", "z int8", "a"]
    assert in_order(reversed(runs)) == [runs[2], runs[0], runs[1]]


def test_unknown_formats_come_last():
    assert [format_rank(quant) for quant in (*QUANTS, "of-the-future")] == list(range(len(QUANTS) + 1))


def test_unpooled_subjects_are_groups_of_their_own(tmp_path):
    write_runs(tmp_path, {"a": 0.5}, "truthfulqa", {"mc1": 2, "mc2": 3})
    write_runs(tmp_path, {"a": 0.5}, "arc", {"easy": 2, "challenge": 3})
    arc, truthfulqa = group_runs(load_runs([str(tmp_path)]))
    assert split_unpooled(arc) == [arc]
    assert [(group.title, len(group.keys)) for group in split_unpooled(truthfulqa)] == [
        ("TruthfulQA, 0-shot: mc1", 2),
        ("TruthfulQA, 0-shot: mc2", 3),
    ]


def test_runs_without_a_common_question_are_refused(tmp_path):
    write_runs(tmp_path, {"a": 0.5}, subjects={"anatomy": 2})
    write_runs(tmp_path, {"b": 0.5}, subjects={"law": 2})
    with pytest.raises(BareloopError, match=r"these runs have no question in common: .*score them on"):
        group_runs(load_runs([str(tmp_path)]))


def test_runs_on_different_data_form_separate_groups(tmp_path, capsys):
    write_runs(tmp_path, {"a": 0.5}, subjects=SMALL)
    write_runs(tmp_path, {"b": 0.5}, subjects=SMALL, data="other")
    assert [len(group.runs) for group in group_runs(load_runs([str(tmp_path)]))] == [1, 1]
    assert "were scored on different data and cannot be compared" in capsys.readouterr().err


def test_the_run_files_of_a_timing_study_are_not_results(tmp_path):
    write_runs(tmp_path / "demo", {"cpu_none": 0.5}, subjects=SMALL)
    (tmp_path / "demo" / "timing.jsonl").touch()
    with pytest.raises(BareloopError, match="no run files"):
        load_runs([str(tmp_path)])
