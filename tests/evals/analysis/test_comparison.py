"""The comparison of a group puts all statistics together."""

from __future__ import annotations

from evals.analysis.comparison import compare
from evals.analysis.statistics import holm_correction
from tests.evals.synthetic import write_and_load


def test_a_comparison_has_an_entry_for_each_run_pair_and_subject(tmp_path):
    group = write_and_load(tmp_path, {"one": 0.3, "two": 0.5, "three": 0.7})
    comparison = compare(group, 200, hardest=4)
    assert len(comparison.overall) == len(comparison.calibration) == len(comparison.choice_bias) == 3
    assert len(comparison.paired) == len(comparison.overlaps) == 3
    assert [row.subject for row in comparison.subjects] == group.subjects
    assert comparison.corrected == holm_correction([row.p for row in comparison.subjects])
    assert len(comparison.hardest) == 4
    assert comparison.alike == []


def test_a_single_run_has_numbers_but_no_pairs(tmp_path):
    comparison = compare(write_and_load(tmp_path, {"one": 0.5}), 200)
    assert comparison.paired == comparison.overlaps == comparison.alike == []
    assert len(comparison.calibration) == len(comparison.choice_bias) == len(comparison.overall) == 1
