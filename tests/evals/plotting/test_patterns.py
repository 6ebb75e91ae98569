"""Plots of mistakes show the values of the records."""

from __future__ import annotations

import math
from itertools import combinations

import pytest

from tests.evals.plotting.reading import texts


def test_misses_are_counted(group, plots):
    (axes,) = plots["misses"].axes
    missed = [sum(not answer for answer in answers) for answers in zip(*group.correct, strict=True)]
    expected = [missed.count(number) for number in range(4)]
    assert [bar.get_height() for bar in axes.patches] == expected
    assert {f"{count:,}" for count in expected} <= set(texts(axes))


def observed_shares(axes) -> list[str]:
    """Return the larger number of each cell of an overlap plot."""
    return [text.get_text() for text in axes.texts if text.get_text().endswith(" %") and text.get_fontsize() > 8]


def test_overlaps_are_shares_of_the_missed_questions(group, plots):
    both, same = plots["overlap"].axes
    records = [run.records for run in group.runs]
    wrong = [{key for key, record in rows.items() if not record["correct"]} for rows in records]
    pairs = list(combinations(range(3), 2))
    shares = [len(wrong[i] & wrong[j]) / len(wrong[i] | wrong[j]) for i, j in pairs]
    assert observed_shares(both) == [f"{100 * share:.0f} %" for share in shares]
    same_shares = []
    for i, j in pairs:
        is_same = [records[i][key]["prediction"] == records[j][key]["prediction"] for key in wrong[i] & wrong[j]]
        same_shares.append(f"{100 * sum(is_same) / len(is_same):.0f} %")
    assert observed_shares(same) == same_shares
    assert [text for text in texts(both) if text in ("one", "two", "three")] == [run.label for run in group.runs]


def test_choice_plots_show_how_often_each_choice_is_chosen_and_right(group, plots):
    for axes, run in zip(plots["choices"].axes, group.runs, strict=True):
        chosen = [record["prediction"] for record in run.records.values()]
        right = [record["gold"] for record in run.records.values()]
        assert [bar.get_height() for bar in axes.patches] == pytest.approx([chosen.count(k) / 200 for k in range(4)])
        assert [line.get_ydata()[0] for line in axes.lines] == pytest.approx([right.count(k) / 200 for k in range(4)])
        assert [label.get_text()[0] for label in axes.get_xticklabels()] == list("ABCD")


def test_reliability_plots_show_confidence_accuracy_and_size_of_each_bin(group, plots):
    for axes, run in zip(plots["reliability"].axes, group.runs, strict=True):
        bins: dict[int, list[tuple[float, bool]]] = {}
        for record in run.records.values():
            weights = [math.exp(score) for score in record["loglikelihoods"]]
            confidence = max(weights) / sum(weights)
            bins.setdefault(int(10 * confidence), []).append((confidence, record["correct"]))
        members = [bins[number] for number in sorted(bins)]
        means = [tuple(sum(column) / len(column) for column in zip(*rows, strict=True)) for rows in members]
        points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "o"]
        assert points == [pytest.approx(mean) for mean in means]
        (below,) = axes.child_axes
        assert [text.get_text() for text in below.texts] == [f"{len(rows):,}" for rows in members]
        error = sum(
            len(rows) * abs(confidence - accuracy) for rows, (confidence, accuracy) in zip(members, means, strict=True)
        )
        assert any(text.startswith(f"ECE {100 * error / 200:.1f} %") for text in texts(axes))
