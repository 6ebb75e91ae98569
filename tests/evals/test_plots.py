"""python -m evals.plots: which files are written, which plots are missing and why, and one line for errors."""

from __future__ import annotations

import pytest

from engine.cli import figures
from engine.cli import parser as cli
from evals.plots import main, parser
from evals.plotting.accuracy import plot_accuracy
from tests.evals.synthetic import write_runs
from tests.evals.synthetic_judged import write_judged

PLOTS = {"accuracy", "subjects", "heat_map", "errors", "misses", "overlap", "choices", "reliability"}


@pytest.fixture(autouse=True)
def small_images(monkeypatch):
    monkeypatch.setattr(figures, "DPI", 20)


def program(*flags: str) -> int:
    """Run the program and return its exit status."""
    with pytest.raises(SystemExit) as stopped:
        cli.run(parser(), main, list(flags))
    return int(stopped.value.code)


def test_all_plots_are_written_as_png_svg_and_pdf(tmp_path, capsys):
    write_runs(tmp_path / "runs", {"one": 0.3, "two": 0.5}, subjects={"anatomy": 5, "law": 5})
    (tmp_path / "runs" / "one" / "results.json").write_text("{}")
    folder, document = tmp_path / "plots", tmp_path / "all.pdf"
    assert program("--result-dir", str(tmp_path / "runs"), "--output-dir", str(folder), "--pdf", str(document)) == 0
    names = {"costs", *(f"mmlu_5shot_{name}" for name in PLOTS)}
    assert {path.name for path in folder.iterdir()} == {name + suffix for name in names for suffix in (".png", ".svg")}
    for path in folder.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")
    assert document.read_bytes().startswith(b"%PDF")
    assert document.read_bytes().count(b"/Type /Page ") == len(names)
    assert capsys.readouterr() == (f"9 plots as PNG and SVG in {folder}\nall of them in {document}\n", "")


def test_each_setting_has_its_own_files(tmp_path, monkeypatch, capsys):
    for header in ({}, {"chat": True}, {"chat": True, "single_turn": True}, {"split": "validation"}, {"shots": 0}):
        write_runs(tmp_path / "/".join(header), {"one": 0.3}, subjects={"anatomy": 2}, **header)
    write_runs(tmp_path, {"one": 0.3}, "truthfulqa", subjects={"mc1": 2, "mc2": 2})
    monkeypatch.setattr("evals.plots.draw_plots", lambda group, runs: [("accuracy", plot_accuracy(group, ["black"]))])
    assert program("--result-dir", str(tmp_path), "--output-dir", str(tmp_path / "plots")) == 0
    settings = ("5shot", "5shot_chat", "5shot_chat1", "validation_5shot", "0shot")
    names = {f"mmlu_{name}_accuracy.png" for name in settings}
    names |= {f"truthfulqa_0shot_mc{number}_accuracy.png" for number in (1, 2)}
    assert {path.name for path in (tmp_path / "plots").glob("*.png")} == names | {"costs.png"}


def test_missing_plots_are_reported_in_one_line_for_each_group(tmp_path, capsys):
    write_runs(tmp_path, {"one": 0.3}, "gsm8k", subjects={"gsm8k": 3}, chat=True)
    assert program("--result-dir", str(tmp_path), "--output-dir", str(tmp_path)) == 0
    assert capsys.readouterr().err == (
        "GSM8K, 5-shot, through the chat template: no plot of subjects, heat map, errors (there is one subject); "
        "misses, overlap (there is one run); choices, reliability (there are no choices)\n"
    )


def test_plots_of_judged_answers_need_no_run_file(tmp_path, capsys):
    write_judged(tmp_path / "runs" / "mt_bench", {"a": 5.0, "b": 7.0}, judges=("gpt-4", "o__x"), questions=1)
    write_judged(tmp_path / "runs" / "few", {"a": 5.0}, categories=("math",))
    folder = tmp_path / "plots"
    assert program("--result-dir", str(tmp_path / "runs"), "--output-dir", str(folder)) == 0
    names = {f"mt_bench_{judge}_{name}" for judge in ("gpt-4", "o__x") for name in ("scores", "radar")}
    names.add("few_judge_scores")
    assert {path.name for path in folder.iterdir()} == {name + suffix for name in names for suffix in (".png", ".svg")}
    assert capsys.readouterr() == (
        f"5 plots as PNG and SVG in {folder}\n",
        "MT-Bench, few: no plot of scores by judge by category (there are fewer than 3 categories with scores)\n",
    )


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (("--result-dir", "empty"), 1, "no run files (*.run.jsonl) in empty; score a model first"),
        (("--result-dir", "others"), 1, "no run files (*.run.jsonl) in others; score a model first"),
        (("--result-dir", "nowhere"), 1, "no such file or folder: nowhere"),
        ((), 1, "no such file or folder: results"),
        (("--result-dir", "others/notes.txt"), 1, "others/notes.txt, line 1 is not a record of a run"),
        (("--result-dir", "runs", "--output-dir", "others/notes.txt"), 1, "cannot write"),
        (("--result-dir", "runs", "--pdf", "others"), 1, "cannot write others: Is a directory"),
        (("--results", "runs"), 2, "unrecognized arguments"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, flags, status, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "others"):
        (tmp_path / name).mkdir()
    (tmp_path / "others" / "notes.txt").write_text("hello\n")
    write_runs(tmp_path / "runs", {"one": 0.3}, "gsm8k", subjects={"gsm8k": 2})
    assert program(*flags) == status
    (*_, line) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m evals.plots: ")
    assert message in line
