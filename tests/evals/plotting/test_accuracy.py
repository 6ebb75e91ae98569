"""Bar plots of accuracies show the values of the records."""

from __future__ import annotations

import pytest

from engine.cli.figures import png, svg
from evals.plotting.accuracy import plot_accuracy
from tests.evals.plotting.reading import accuracies, assert_wilson_intervals, dots, texts


def test_bars_are_the_accuracies_best_first_with_wilson_intervals(group, plots):
    (axes,) = plots["accuracy"].axes
    expected = sorted(accuracies(group), reverse=True)
    assert [x for x, _ in dots(axes)] == pytest.approx(expected)
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(expected)
    assert_wilson_intervals(axes, 200)
    for mean in expected:
        assert any(text.startswith(f"{100 * mean:.1f} %  (") for text in texts(axes))
    assert "chance 25 %" in texts(axes)


def test_bars_of_few_subjects_are_their_accuracies(group, plots):
    figure = plots["subjects"]
    expected = [accuracies(group, subject) for subject in ("anatomy", "astronomy")]
    assert [x for x, _ in dots(figure.axes[0])] == pytest.approx([*expected[0], *expected[1]])
    assert {"anatomy (50)", "astronomy (150)"} <= set(texts(figure))


def test_the_same_runs_give_the_same_files(group):
    first, second = (plot_accuracy(group, ["black"] * 3).figure for _ in range(2))
    assert svg(first) == svg(second) == svg(first)
    assert png(first) == png(second)
    assert svg(first).startswith("<?xml")
