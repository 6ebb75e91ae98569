"""Plots by subject show the values of the records."""

from __future__ import annotations

import pytest
from matplotlib.text import Text

from evals.data.subjects import GROUPS
from evals.plotting.subjects import plot_errors, plot_subjects
from tests.evals.plotting.reading import accuracies, dots, texts
from tests.evals.synthetic import write_and_load

SUBJECTS = [subject for listed in GROUPS.values() for subject in listed]


def test_many_subjects_are_dots_with_the_same_values_as_bars(group, monkeypatch):
    expected = [accuracies(group, subject) for subject in ("anatomy", "astronomy")]
    monkeypatch.setattr("evals.plotting.subjects.MAX_BARS", 0)
    columns = plot_subjects(group, ["black"] * 3).figure.axes
    assert [[x for x, _ in dots(axes)] for axes in columns] == [
        pytest.approx([expected[0][run], expected[1][run]]) for run in range(3)
    ]


def test_the_cells_of_the_heat_map_are_the_accuracies(group, plots):
    (axes,) = plots["heat_map"].axes
    rows = [accuracies(group, subject) for subject in ("anatomy", "astronomy", None)]
    expected = [f"{100 * mean:.1f}" for row in rows for mean in row]
    assert [text.get_text() for text in axes.texts if type(text) is Text] == expected


def test_error_rates_are_sorted_with_the_hardest_subject_first(group, plots):
    (axes,) = plots["errors"].axes
    means = [1 - sum(accuracies(group, subject)) / 3 for subject in ("anatomy", "astronomy")]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(sorted(means, reverse=True))
    names = [text for text in texts(axes) if text in ("anatomy", "astronomy")]
    assert names == sorted(names, key=lambda name: -means[name == "astronomy"])


def test_error_rates_of_many_subjects_are_also_shown_by_group(tmp_path):
    group = write_and_load(tmp_path, {"one": 0.3, "two": 0.5}, subjects=dict.fromkeys(SUBJECTS[::3], 4))
    (axes,) = plot_errors(group).figure.axes
    errors = {
        name: [
            not answer
            for answers in group.correct
            for key, answer in zip(group.keys, answers, strict=True)
            if key[0] in members
        ]
        for name, members in GROUPS.items()
    }
    widths = [bar.get_width() for bar in axes.patches]
    for wrong in errors.values():
        assert any(width == pytest.approx(sum(wrong) / len(wrong)) for width in widths)
    assert {"STEM", "Humanities", "Social sciences", "Other", "by group", "by subject"} <= set(texts(axes))
