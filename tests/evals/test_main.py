"""python -m evals: the overview, and every program under its short name."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from evals import __main__ as overview
from evals.data.catalogue import BENCHMARKS


def test_the_overview_shows_what_is_cached(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "datasets" / "cais___mmlu" / "all").mkdir(parents=True)
    (tmp_path / "datasets" / "truthfulqa___truthful_qa" / "multiple_choice").mkdir(parents=True)
    (tmp_path / "hub" / "models--gpt2").mkdir(parents=True)
    with pytest.raises(SystemExit) as status:
        overview.dispatch([])
    assert status.value.code == 0
    output = capsys.readouterr().out
    lines = output.splitlines()
    cached = {name: "yes" in line for name in BENCHMARKS for line in lines if f"evals.{name} " in line}
    assert cached == {name: name in ("mmlu", "truthfulqa") for name in BENCHMARKS}
    assert "models in the hub's cache: gpt2" in output


@pytest.mark.parametrize("name", [*BENCHMARKS, *overview.PROGRAMS])
def test_every_program_works_under_its_short_name(name, capsys):
    with pytest.raises(SystemExit) as status:
        overview.dispatch([name, "--help"])
    assert status.value.code == 0
    assert capsys.readouterr().out == importlib.import_module(f"evals.{name}").parser().format_help()


def test_the_flags_of_a_program_reach_it(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "evals", "compare", str(tmp_path), "--hardest", "2"], capture_output=True, text=True
    )
    assert process.returncode == 1
    assert process.stderr.startswith(f"python -m evals.compare: no run files (*.run.jsonl) in {tmp_path}")


def test_an_unknown_program_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as status:
        overview.dispatch(["mlu"])
    assert status.value.code == 2
    assert "invalid choice: 'mlu' (choose from" in capsys.readouterr().err
