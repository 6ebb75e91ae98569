"""Pictures of run files: what is drawn is what the records say, every text can be read, and which files are written."""

from __future__ import annotations

import math
from functools import partial
from itertools import combinations

import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.text import Text

from engine.cli import figures as drawing
from engine.cli import parser as cli
from evals.data.subjects import GROUPS
from evals.plots import costs_figure, figures, main, parser, png, svg
from evals.plotting import patterns as pictures_patterns
from evals.plotting.accuracy import accuracy
from evals.plotting.common import Picture, colours
from evals.plotting.subjects import errors, subjects
from evals.runs.collection import groups, load, parts
from tests.evals.synthetic import make

SHORT = ["demo", "gpt2", "Qwen/Qwen2.5-0.5B", "google/gemma-2-2b"]
LONG = [
    "NousResearch/Hermes-3-Llama-3.2-3B-preview-v2",
    "unbreakablenameofamodelthatgoesonandonandx/B",
    "meta-llama/Llama-3.2-1B-Instruct-finetuned-$1",
    "organisation-of-models/a-very-long-name-instruct",
]
SUBJECTS = [subject for listed in GROUPS.values() for subject in listed]
PICTURES = {"accuracy", "subjects", "heat_map", "errors", "misses", "overlap", "choices", "reliability"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small images, and a few permutations."""
    monkeypatch.setattr(drawing, "DPI", 30)
    few = partial(pictures_patterns.common_misses, permutations=200)
    monkeypatch.setattr(pictures_patterns, "common_misses", few)


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """Three models, two subjects."""
    folder = tmp_path_factory.mktemp("runs")
    make(folder, {"one": 0.3, "two": 0.5, "three": 0.8}, subjects={"anatomy": 50, "astronomy": 150})
    (found,) = groups(load([str(folder)]))
    return found


def pictures(folder) -> list[Picture]:
    """All that can be drawn of the runs in a folder."""
    runs = load([str(folder)])
    listed = [part for own in groups(runs) for part in parts(own)]
    return [picture for part in listed for picture in figures(part, runs)] + [costs_figure(runs)]


@pytest.fixture(scope="module")
def shown(group):
    """Their pictures' figures."""
    return {own.name: own.figure for own in figures(group)}


def texts(figure) -> list[Text]:
    return [own for own in figure.findobj(Text) if own.get_visible() and own.get_text().strip()]


def said(figure) -> list[str]:
    return [own.get_text() for own in texts(figure)]


def dots(axes) -> list[tuple[float, float]]:
    """Where the dots of intervals are."""
    return [tuple(at) for own in axes.collections if type(own) is PathCollection for at in own.get_offsets().tolist()]


def assert_readable(picture: Picture) -> None:
    """No two texts over each other, none outside the figure, none too small."""
    figure = picture.figure
    with drawing.style():
        figure.draw_without_rendering()
        boxes = [(own.get_text(), own.get_window_extent().extents.tolist()) for own in texts(figure)]
    assert min(own.get_fontsize() for own in texts(figure)) >= drawing.SMALLEST
    for text, (left, bottom, right, top) in boxes:
        assert min(left, bottom) >= 0, (picture.name, text)
        assert right <= figure.bbox.width, (picture.name, text)
        assert top <= figure.bbox.height, (picture.name, text)
    for (one, first), (other, second) in combinations(boxes, 2):
        wide = min(first[2], second[2]) - max(first[0], second[0])
        high = min(first[3], second[3]) - max(first[1], second[1])
        assert min(wide, high) < 0.5, (picture.name, one, other)


def test_every_text_can_be_read_of_eight_models_and_57_subjects(tmp_path):
    for place, name in enumerate([*LONG, *SHORT]):
        how = {"device": "cuda", "quant": "int8"} if place % 2 else {}
        make(tmp_path, {name: 0.1 + 0.1 * place}, subjects=dict.fromkeys(SUBJECTS, 3), **how)
    made = pictures(tmp_path)
    assert {own.name for own in made} == PICTURES | {"costs"}
    for picture in made:
        assert_readable(picture)


def test_every_text_can_be_read_of_one_model(tmp_path):
    make(tmp_path, {"a": 0.4}, subjects=dict.fromkeys(SUBJECTS[:14], 3))
    made = pictures(tmp_path)
    assert {own.name for own in made} == PICTURES - {"heat_map", "misses", "overlap"} | {"costs"}
    for picture in made:
        assert_readable(picture)


@pytest.mark.parametrize("task", ["arc", "gsm8k"])
def test_every_text_can_be_read_of_a_benchmark(tmp_path, task):
    make(tmp_path, {SHORT[0]: 0.5, LONG[0]: 0.4}, task)
    make(tmp_path, {LONG[1]: 0.4}, task, quant="int8")
    for picture in pictures(tmp_path):
        assert_readable(picture)


@pytest.mark.parametrize(
    ("rates", "subjects"),
    [((1.0, 1.0), {"$x$_^": 3, "$$": 4}), ((0.0, 0.0), {"anatomy": 120}), ((1.0, 0.0), {"anatomy": 1})],
    ids=["all right", "all wrong", "one question"],
)
def test_what_is_odd_can_be_drawn_and_read(tmp_path, rates, subjects):
    make(tmp_path, {f"/models/$a$ {place}": rate for place, rate in enumerate(rates)}, subjects=subjects, chat=True)
    for picture in pictures(tmp_path):
        assert_readable(picture)


def accuracies(group, subject: str | None = None) -> list[float]:
    """Of each run, counted from its records."""
    rows = [[own for key, own in run.records.items() if subject in (None, key[0])] for run in group.runs]
    return [sum(own["correct"] for own in listed) / len(listed) for listed in rows]


def assert_wilson(axes, n: int) -> None:
    """The ends of each interval are as far from the accuracy as 1.96 of their own standard errors."""
    segments = [own for lines in axes.collections if type(lines) is LineCollection for own in lines.get_segments()]
    ends = {y: (low, high) for (low, y), (high, other) in (own.tolist() for own in segments) if y == other}
    for mean, y in dots(axes):
        for end in ends[y]:
            assert (mean - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / n, rel=1e-4)


def test_accuracy_and_its_interval_are_the_records_the_best_first(group, shown):
    (axes,) = shown["accuracy"].axes
    expected = sorted(accuracies(group), reverse=True)
    assert [x for x, _ in dots(axes)] == pytest.approx(expected)
    assert [own.get_width() for own in axes.patches] == pytest.approx(expected)
    assert_wilson(axes, 200)
    for mean in expected:
        assert any(own.startswith(f"{100 * mean:.1f} %  (") for own in said(axes))
    assert "chance 25 %" in said(axes)


def test_few_subjects_are_bars_and_many_are_dots_with_the_same_values(group, shown, monkeypatch):
    bars = shown["subjects"]
    expected = [accuracies(group, subject) for subject in ("anatomy", "astronomy")]
    assert [x for x, _ in dots(bars.axes[0])] == pytest.approx([*expected[0], *expected[1]])
    assert {"anatomy (50)", "astronomy (150)"} <= set(said(bars))
    monkeypatch.setattr("evals.plotting.subjects.BARS", 0)
    columns = subjects(group, ["black"] * 3).figure.axes
    assert [[x for x, _ in dots(axes)] for axes in columns] == [
        pytest.approx([expected[0][run], expected[1][run]]) for run in range(3)
    ]


def test_the_cells_of_the_heat_map_are_the_accuracies(group, shown):
    (axes,) = shown["heat_map"].axes
    rows = [accuracies(group, subject) for subject in ("anatomy", "astronomy", None)]
    expected = [f"{100 * mean:.1f}" for row in rows for mean in row]
    assert [own.get_text() for own in axes.texts if type(own) is Text] == expected


def test_the_hardest_subject_comes_first(group, shown):
    (axes,) = shown["errors"].axes
    means = [1 - sum(accuracies(group, subject)) / 3 for subject in ("anatomy", "astronomy")]
    assert [own.get_width() for own in axes.patches] == pytest.approx(sorted(means, reverse=True))
    names = [own for own in said(axes) if own in ("anatomy", "astronomy")]
    assert names == sorted(names, key=lambda name: -means[name == "astronomy"])


def test_the_errors_of_many_subjects_are_also_by_group(tmp_path):
    make(tmp_path, {"one": 0.3, "two": 0.5}, subjects=dict.fromkeys(SUBJECTS[::3], 4))
    (own,) = groups(load([str(tmp_path)]))
    (axes,) = errors(own).figure.axes
    counts = {name: [not answer for answers in own.correct for key, answer in zip(own.keys, answers, strict=True)
                     if key[0] in GROUPS[name]] for name in GROUPS}  # fmt: skip
    expected = sorted((sum(wrong) / len(wrong) for wrong in counts.values()), reverse=True)
    widths = [own.get_width() for own in axes.patches]
    assert all(any(width == pytest.approx(share) for width in widths) for share in expected)
    assert {"STEM", "Humanities", "Social sciences", "Other", "by group", "by subject"} <= set(said(axes))


def test_misses_are_counted(group, shown):
    (axes,) = shown["misses"].axes
    missed = [sum(not answer for answer in answers) for answers in zip(*group.correct, strict=True)]
    expected = [missed.count(times) for times in range(4)]
    assert [own.get_height() for own in axes.patches] == expected
    assert {f"{count:,}" for count in expected} <= set(said(axes))


def test_overlaps_are_shares_of_what_is_missed(group, shown):
    both, same = shown["overlap"].axes
    wrong = [{key for key, own in run.records.items() if not own["correct"]} for run in group.runs]
    pairs = list(combinations(range(3), 2))
    shares = [len(wrong[one] & wrong[two]) / len(wrong[one] | wrong[two]) for one, two in pairs]
    assert cells(both) == [f"{100 * share:.0f} %" for share in shares]
    alike = []
    for one, two in pairs:
        first, second = group.runs[one].records, group.runs[two].records
        common = [first[key]["prediction"] == second[key]["prediction"] for key in wrong[one] & wrong[two]]
        alike.append(f"{100 * sum(common) / len(common):.0f} %")
    assert cells(same) == alike
    assert [own for own in said(both) if own in ("one", "two", "three")] == [run.label for run in group.runs]


def cells(axes) -> list[str]:
    """What is observed: the larger number of each cell."""
    return [own.get_text() for own in axes.texts if own.get_text().endswith(" %") and own.get_fontsize() > 8]


def test_choices_are_as_often_as_they_are_chosen_and_right(group, shown):
    for axes, one in zip(shown["choices"].axes, group.runs, strict=True):
        chosen = [own["prediction"] for own in one.records.values()]
        right = [own["gold"] for own in one.records.values()]
        assert [own.get_height() for own in axes.patches] == pytest.approx([chosen.count(k) / 200 for k in range(4)])
        assert [own.get_ydata()[0] for own in axes.lines] == pytest.approx([right.count(k) / 200 for k in range(4)])
        assert [own.get_text()[0] for own in axes.get_xticklabels()] == list("ABCD")


def test_confidence_stands_beside_what_is_right_with_the_number_of_questions(group, shown):
    panels = shown["reliability"].axes
    for axes, one in zip(panels, group.runs, strict=True):
        binned: dict[int, list[tuple[float, bool]]] = {}
        for own in one.records.values():
            weights = [math.exp(score) for score in own["loglikelihoods"]]
            sure = max(weights) / sum(weights)
            binned.setdefault(int(10 * sure), []).append((sure, own["correct"]))
        means = [tuple(sum(part) / len(part) for part in zip(*binned[k], strict=True)) for k in sorted(binned)]
        shown = [(own.get_xdata()[0], own.get_ydata()[0]) for own in axes.lines if own.get_marker() == "o"]
        assert shown == [pytest.approx(mean) for mean in means]
        (below,) = axes.child_axes
        assert [own.get_text() for own in below.texts] == [f"{len(binned[k]):,}" for k in sorted(binned)]
        gap = sum(len(binned[k]) * abs(sure - right) for k, (sure, right) in zip(sorted(binned), means, strict=True))
        assert any(own.startswith(f"ECE {100 * gap / 200:.1f} %") for own in said(axes))


def test_costs_are_told_of_every_run_by_benchmark(tmp_path):
    make(tmp_path, {"one": 0.5}, "gsm8k", device="cuda", subjects={"gsm8k": 4})
    make(tmp_path, {"one": 0.5}, "mmlu", subjects={"anatomy": 4})
    runs = load([str(tmp_path)])
    told = said(costs_figure(runs).figure)
    assert [own for own in told if own.endswith("-shot")] == ["MMLU, 5-shot", "GSM8K, 5-shot"]
    for one in runs:
        times = [own["times"] for own in one.records.values()]
        for kind in {"real", "cpu", "gpu"} & times[0].keys():
            mean = 1000 * sum(own[kind] for own in times) / 4
            assert (
                len([own for own in told if own.lower().endswith(f"ms {kind}") and own.startswith(f"{mean:.3g}")]) == 1
            )
    assert told.count("1,500 MB") == 2
    assert sum("tokens/s" in own for own in told) == 1


def test_a_model_keeps_its_colour(tmp_path):
    make(tmp_path, {"one": 0.5, "two": 0.5, "three": 0.5}, "mmlu", subjects={"anatomy": 2})
    make(tmp_path, {"three": 0.5, "one": 0.5}, "gsm8k", subjects={"gsm8k": 2})
    runs = load([str(tmp_path)])
    mmlu, gsm8k = ({run.label: run for run in own.runs} for own in groups(runs))
    painted = dict(zip(mmlu, colours(list(mmlu.values()), runs), strict=True))
    assert len(set(painted.values())) == 3
    assert colours(list(gsm8k.values()), runs) == [painted[label] for label in gsm8k]
    many = [*mmlu.values()] * 3
    assert len(set(colours(many))) == 8, "two runs of one model are told apart while there are colours"


def plot(*flags: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.run(parser(), main, list(flags))
    return int(left.value.code)


def test_the_program_writes_png_svg_and_pdf(tmp_path, capsys):
    make(tmp_path / "runs", {"one": 0.3, "two": 0.5}, subjects={"anatomy": 5, "law": 5})
    (tmp_path / "runs" / "one" / "results.json").write_text("{}")
    folder, document = tmp_path / "plots", tmp_path / "all.pdf"
    assert plot("--result-dir", str(tmp_path / "runs"), "--output-dir", str(folder), "--pdf", str(document)) == 0
    names = {"costs", *(f"mmlu_5shot_{name}" for name in PICTURES)}
    assert {path.name for path in folder.iterdir()} == {name + ending for name in names for ending in (".png", ".svg")}
    for path in folder.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")
    assert document.read_bytes().startswith(b"%PDF")
    assert document.read_bytes().count(b"/Type /Page ") == len(names)
    assert capsys.readouterr() == (f"9 pictures as PNG and SVG in {folder}\nall of them in {document}\n", "")


def test_every_setting_has_files_of_its_own(tmp_path, monkeypatch, capsys):
    for how in ({}, {"chat": True}, {"chat": True, "single_turn": True}, {"split": "validation"}, {"shots": 0}):
        make(tmp_path / "/".join(how), {"one": 0.3}, subjects={"anatomy": 2}, **how)
    make(tmp_path, {"one": 0.3}, "truthfulqa", subjects={"mc1": 2, "mc2": 2})
    monkeypatch.setattr("evals.plots.drawn", lambda group, runs: [("accuracy", accuracy(group, ["black"]))])
    assert plot("--result-dir", str(tmp_path), "--output-dir", str(tmp_path / "plots")) == 0
    settings = ("5shot", "5shot_chat", "5shot_chat1", "validation_5shot", "0shot")
    names = {f"mmlu_{own}_accuracy.png" for own in settings} | {f"truthfulqa_0shot_mc{k}_accuracy.png" for k in (1, 2)}
    assert {path.name for path in (tmp_path / "plots").glob("*.png")} == names | {"costs.png"}


def test_what_is_not_drawn_is_told_in_one_line_for_each_group(tmp_path, capsys):
    make(tmp_path, {"one": 0.3}, "gsm8k", subjects={"gsm8k": 3}, chat=True)
    assert plot("--result-dir", str(tmp_path), "--output-dir", str(tmp_path)) == 0
    assert capsys.readouterr().err == (
        "GSM8K, 5-shot, through the chat template: no picture of subjects, heat map, errors (there is one subject); "
        "misses, overlap (there is one run); choices, reliability (there are no choices)\n"
    )


def test_the_same_runs_give_the_same_files(group):
    first, second = (accuracy(group, ["black"] * 3).figure for _ in range(2))
    assert svg(first) == svg(second) == svg(first)
    assert png(first) == png(second)
    assert svg(first).startswith("<?xml")


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--result-dir", "empty"), 1, "no run files (*.run.jsonl) in empty; score a model first"),
        (("--result-dir", "others"), 1, "no run files (*.run.jsonl) in others; score a model first"),
        (("--result-dir", "nowhere"), 1, "no such file or folder: nowhere"),
        ((), 1, "no such file or folder: results"),
        (("--result-dir", "others/notes.txt"), 1, "others/notes.txt, line 1 is no record of a run"),
        (("--result-dir", "runs", "--output-dir", "others/notes.txt"), 1, "cannot write"),
        (("--result-dir", "runs", "--pdf", "others"), 1, "cannot write others: Is a directory"),
        (("--results", "runs"), 2, "unrecognized arguments"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_one_line(tmp_path, monkeypatch, capsys, flags, code, words):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "others"):
        (tmp_path / name).mkdir()
    (tmp_path / "others" / "notes.txt").write_text("hello\n")
    make(tmp_path / "runs", {"one": 0.3}, "gsm8k", subjects={"gsm8k": 2})
    assert plot(*flags) == code
    (*_, line) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m evals.plots: ")
    assert words in line


def test_a_name_is_folded_where_it_can_be():
    def fold(text: str, width: float) -> list[str]:
        return drawing.fold(text, width, 8).split("\n")

    assert fold("meta-llama/Llama-3.2-1B", 2.0) == ["meta-llama/Llama-3.2-1B"]
    assert fold("meta-llama/Llama-3.2-1B", 1.0) == ["meta-llama/", "Llama-3.2-1B"]
    assert fold("meta-llama/Llama-3.2-1B", 0.6) == ["meta-", "llama/", "Llama-", "3.2-1B"]
    assert fold("a line of 95 % and more", 0.75) == ["a line of", "95 % and", "more"]
    assert all(drawing.text_width(line, 8) <= 0.5 for line in fold("unbreakable" * 3, 0.5))
    assert "".join(fold("unbreakable" * 3, 0.5)) == "unbreakable" * 3
