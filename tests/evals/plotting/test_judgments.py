"""Plots of judges' scores show their means, leave gaps where there are none, and can be read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import same_color

from engine.cli.figures import svg
from evals.analysis.judgments import JudgeAnalysis, analyse
from evals.plotting.common import Plot
from evals.plotting.judgments import draw_judged, judged_stems
from evals.runs.judged_folder import JudgedFolder, load_judged
from tests.evals.plotting.reading import assert_readable, dots, texts
from tests.evals.plotting.test_readability import LONG_NAMES, SHORT_NAMES
from tests.evals.synthetic_judged import write_judged


def load(folder: Path) -> tuple[JudgedFolder, JudgeAnalysis, list[Plot | str]]:
    (judged,) = load_judged([str(folder)])
    return judged, analyse(judged.judges, judged.categories)[0], [plot for _, plot in draw_judged(judged)]


def corners(axes) -> list[list[tuple[float, float]]]:
    """Return angle and radius of the corners of each polygon with dots; the angle in turns, clockwise from the top."""
    lines = [line for line in axes.lines if line.get_marker() == "o"]
    points = [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in lines]
    return [[(math.atan2(x, y) / math.tau % 1, math.hypot(x, y)) for x, y in line] for line in points]


def test_bars_are_the_means_of_each_turn_and_both_with_intervals(tmp_path):
    write_judged(tmp_path, {"small": 4.0, "large": 8.0}, unscored=0.1)
    _, analysis, (bars, _) = load(tmp_path)
    (axes,) = bars.figure.axes
    means = [mean for row in analysis.models for mean in (row.turns[1], row.turns[2], row.overall)]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([mean.mean for mean in means])
    assert [x for x, _ in dots(axes)] == pytest.approx([mean.mean for mean in means])
    expected = [f"{mean.mean:.2f}  ({mean.low:.1f} to {mean.high:.1f})" for mean in means]
    assert [text for text in texts(bars.figure) if "  (" in text] == expected
    assert axes.get_xlim() == (0, 10)


def test_corners_of_the_radar_are_the_means_by_category(tmp_path):
    write_judged(tmp_path, {"small": 4.0, "large": 8.0})
    _, analysis, (_, radar) = load(tmp_path)
    axes, _ = radar.figure.axes
    polygons = corners(axes)
    names = ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]
    for row, polygon in zip(analysis.models, polygons, strict=True):
        assert [radius for _, radius in polygon[:-1]] == pytest.approx([row.categories[name].mean for name in names])
        assert [turn for turn, _ in polygon[:-1]] == pytest.approx([index / 8 for index in range(8)])
        assert polygon[-1] == pytest.approx(polygon[0])
    assert [text for text in texts(radar.figure) if text in names] == names


def test_a_model_has_the_same_colour_in_both_plots(tmp_path):
    write_judged(tmp_path, {"a": 4.0, "b": 8.0}, questions=1)
    _, analysis, (bars, radar) = load(tmp_path)
    lines = [line for line in radar.figure.axes[0].lines if line.get_marker() == "o"]
    drawn = [own for own in bars.figure.axes[0].collections if type(own) is PathCollection]
    for line, dot in zip(lines, drawn[::3], strict=True):
        assert same_color(line.get_color(), dot.get_facecolor()[0])
    assert [row.model for row in analysis.models] == ["b", "a"]


def test_categories_and_models_without_scores_are_gaps(tmp_path):
    write_judged(tmp_path, {"a": 6.0, "b": 3.0}, questions=1)
    path = tmp_path / "model_judgment" / "judge_single.jsonl"
    lines = path.read_text().splitlines()
    is_math = [f'"question_id": {number},' in line for line in lines for number in [84]]
    silent = [
        line.replace('"score": ', '"score": -1, "was": ') if '"model": "b"' in line or math_ else line
        for line, math_ in zip(lines, is_math, strict=True)
    ]
    path.write_text("\n".join(silent) + "\n")
    _, analysis, plots = load(tmp_path)
    bars, radar = plots
    (polygon,) = corners(radar.figure.axes[0])
    assert len(polygon) == 8
    assert "math" not in texts(radar.figure)
    assert texts(bars.figure).count("no score") == 3
    assert analysis.models[-1].overall.count == 0
    for plot in plots:
        assert_readable(plot)


def test_a_category_that_only_one_model_lacks_is_a_gap_in_its_polygon(tmp_path):
    write_judged(tmp_path, {"a": 6.0, "b": 3.0}, questions=1)
    path = tmp_path / "model_judgment" / "judge_single.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in lines if '"question_id": 84, "model": "b"' not in line))
    _, _, (_, radar) = load(tmp_path)
    radii = [[radius for _, radius in polygon] for polygon in corners(radar.figure.axes[0])]
    assert [math.isnan(radius) for radius in radii[1]] == [False] * 3 + [True] + [False] * 5
    assert not any(map(math.isnan, radii[0]))
    assert len(radar.figure.axes[0].patches) == 1  # only a whole polygon is filled


@pytest.mark.parametrize(
    ("options", "reasons"),
    [
        ({"categories": ("math", "coding")}, [None, "there are fewer than 3 categories with scores"]),
        ({"saved": False}, [None, "there are fewer than 3 categories with scores"]),
        ({"unscored": 1.0}, ["there are no scores", "there are fewer than 3 categories with scores"]),
    ],
)
def test_missing_plots_have_a_reason(tmp_path, options, reasons):
    write_judged(tmp_path, {"a": 6.0}, questions=1, **options)
    _, _, plots = load(tmp_path)
    assert [plot if isinstance(plot, str) else None for plot in plots] == reasons


@pytest.mark.parametrize("names", [["a"], [*LONG_NAMES, *SHORT_NAMES, "ninth", "tenth"]])
def test_every_text_can_be_read(tmp_path, names):
    models = {name.replace("/", "__"): 1 + 0.9 * index for index, name in enumerate(names)}
    categories = ("writing", "math", "$x$ and other sciences", "humanities", "data extraction from long documents")
    write_judged(
        tmp_path, models, judges=("org__a-judge-with-a-long-name-70B-instruct",), questions=1, categories=categories
    )
    _, _, plots = load(tmp_path)
    for plot in plots:
        assert_readable(plot)
        assert svg(plot.figure).startswith("<?xml")


def test_scores_beyond_10_widen_the_axes(tmp_path):
    write_judged(tmp_path, {"a": 6.0}, questions=1)
    path = tmp_path / "model_judgment" / "judge_single.jsonl"
    path.write_text(path.read_text().replace('"score": ', '"score": 1'))
    _, analysis, (bars, radar) = load(tmp_path)
    assert bars.figure.axes[0].get_xlim()[1] >= analysis.models[0].overall.mean > 10
    assert max(radius for _, radius in corners(radar.figure.axes[0])[0]) <= radar.figure.axes[0].get_xlim()[1]
    for plot in (bars, radar):
        assert_readable(plot)


def test_folders_of_one_name_have_files_of_different_names(tmp_path):
    for name in ("x/mt bench", "y/mt bench"):
        write_judged(tmp_path / name, {"a": 6.0}, questions=1)
    assert judged_stems(load_judged([str(tmp_path)])) == ["mt_bench", "mt_bench_2"]
