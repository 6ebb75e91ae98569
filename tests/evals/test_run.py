"""Many cells: skipped when done, gone on with after a kill, none ended by another's failure."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from itertools import product

import pytest

from engine.runtime.errors import BareloopError, UsageError
from evals import __main__ as overview
from evals import run as matrix
from evals.data.catalogue import BENCHMARKS

STORIES = "llama-tinystories-656k"


def options_of(shared, output, *more: str):
    words = ["--tasks", "arc", "truthfulqa", "--model", str(shared / "checkpoints" / STORIES), "--limit", "3"]
    words += ["--data", str(shared / "data"), "--device", "cpu", "--output-dir", str(output)]
    return matrix.parser().parse_args([*words, *more])


@pytest.fixture
def here(monkeypatch):
    """Cells in this process, which is faster; what ran."""
    ran = []

    def apart(function, task, words, debug):
        ran.append(task)
        return function(task, words)

    monkeypatch.setattr(matrix, "apart", apart)
    return ran


def test_a_matrix_is_one_table(shared, tmp_path, here, capsys):
    matrix.main(options_of(shared, tmp_path, "--quant", "none", "int8"))
    assert here == ["arc", "arc", "truthfulqa", "truthfulqa"]
    told = capsys.readouterr()
    for expected in ("ARC (6)", "TruthfulQA (6)", f"{STORIES} int8", "mc1", "mc2"):
        assert expected in told.out
    assert "[4/4] truthfulqa, llama-tinystories-656k int8" in told.err
    assert (tmp_path / "matrix_arc_truthfulqa.md").read_text().count("\n") == 4
    names = {path.name for path in (tmp_path / STORIES).glob("*_0shot_cpu_float32_*.run.jsonl")}
    cells = product(("arc", "truthfulqa"), ("none", "int8"))
    assert names == {f"{task}_0shot_cpu_float32_{quant}.run.jsonl" for task, quant in cells}
    before = {path: path.read_bytes() for path in (tmp_path / STORIES).glob("*.run.jsonl")}
    matrix.main(options_of(shared, tmp_path, "--quant", "int8", "none"))
    assert {path: path.read_bytes() for path in before} == before
    rows = (tmp_path / "matrix_arc_truthfulqa.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {STORIES}", f"| {STORIES} int8"]  # plain first
    assert "arc: " not in capsys.readouterr().err  # no progress: nothing was left to do


def test_one_failure_does_not_end_the_rest(shared, tmp_path, here, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(shared / "checkpoints" / STORIES, broken)
    (broken / "config.json").unlink()
    (broken / "config.json").write_text("{}")
    with pytest.raises(BareloopError, match=r"2 of 4 cells failed \(arc, broken; truthfulqa, broken\)"):
        matrix.main(options_of(shared, tmp_path, "--model", str(broken)))
    told = capsys.readouterr()
    assert "arc, broken failed: " in told.err
    rows = (tmp_path / "matrix_arc_truthfulqa.md").read_text().splitlines()
    assert rows[-1].startswith("| broken | failed | failed")
    assert "failed" not in rows[-2]


def test_a_killed_matrix_goes_on(shared, tmp_path):
    """Real processes: a kill -9 of the program ends the cell too, and costs nothing but the batch."""
    words = [sys.executable, "-m", "evals", "run", "--tasks", "arc", "--model", str(shared / "checkpoints" / STORIES)]
    words += ["--data", str(shared / "data"), "--device", "cpu", "--output-dir", str(tmp_path), "--batch-tokens", "400"]
    path = tmp_path / STORIES / "arc_0shot_cpu_float32_none.run.jsonl"
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not path.exists() or path.stat().st_size < 20_000:
        time.sleep(0.005)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run([*words, "--limit", "150"], capture_output=True, text=True)
    while "another process is writing" in done.stderr:  # the cell ends a moment after its parent
        done = subprocess.run([*words, "--limit", "150"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    keys = [(row["subject"], row["index"]) for row in map(json.loads, path.read_text().splitlines()[1:])]
    assert len(keys) == len(set(keys)) >= 300
    assert "ARC (300)" in done.stdout


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--tasks", "mmlu", "--limit", "0"], "--limit 0: use 1 or more"),
        (["--tasks", "mmlu", "--quant", "int3"], "unknown weight format 'int3'"),
        (["--tasks", "mmlu", "--data", "."], "has no folder arc"),
    ],
)
def test_wrong_flags_are_refused_before_any_work(shared, tmp_path, here, words, line):
    with pytest.raises(UsageError, match=line):
        matrix.main(options_of(shared, tmp_path, *words))
    assert here == []


def test_flags_reach_the_benchmarks_that_have_them(shared, tmp_path):
    options = options_of(shared, tmp_path, "--shots", "2", "--batch-size", "4", "--subjects", "anatomy", "--fresh")
    for task in BENCHMARKS:
        flags = matrix.flags(options, matrix.Cell(task, "demo", "int8"))
        own = matrix.program(task)[0].parse_args(flags)
        assert (own.model, own.quant, own.limit, own.fresh) == (["demo"], "int8", 3, True)
        if task != "truthfulqa":
            assert own.shots in (2, [2])


def test_the_overview_tells_what_is_cached(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "datasets" / "cais___mmlu" / "all").mkdir(parents=True)
    (tmp_path / "datasets" / "truthfulqa___truthful_qa" / "multiple_choice").mkdir(parents=True)
    (tmp_path / "hub" / "models--gpt2").mkdir(parents=True)
    overview.main(None)
    told = capsys.readouterr().out
    cached = {name: "yes" in line for name in BENCHMARKS for line in told.splitlines() if f"evals.{name} " in line}
    assert cached == {name: name in ("mmlu", "truthfulqa") for name in BENCHMARKS}
    assert "models in the hub's cache: gpt2" in told
