"""The matrix: finished runs are skipped, unfinished ones continued, and a failed one does not end the others."""

from __future__ import annotations

import json
import shutil
import signal
from itertools import product

import pytest

from engine import LLM
from engine.checkpoints import embedded
from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import exclusive
from evals import run as matrix
from evals.data.catalogue import BENCHMARKS
from evals.studies.matrix import MatrixRun
from tests.engine.remote.fake_server import serving
from tests.evals.harness.remote.serving_llm import answers
from tests.evals.paused import paused

STORIES = "llama-tinystories-656k"


def options_for(shared, output, *more: str):
    arguments = ["--tasks", "arc", "truthfulqa", "--model", str(shared / "checkpoints" / STORIES), "--limit", "3"]
    arguments += ["--data", str(shared / "data"), "--device", "cpu", "--output-dir", str(output)]
    return matrix.parser().parse_args([*arguments, *more])


@pytest.fixture
def tasks_run(monkeypatch):
    """Do the runs in this process, which is faster. Returns the list of their tasks."""
    tasks = []

    def run_here(function, *arguments, debug):
        if function is matrix.score:
            tasks.append(arguments[0])
        return function(*arguments)

    monkeypatch.setattr(matrix, "run_in_subprocess", run_here)
    return tasks


def test_all_runs_are_in_one_table(shared, tmp_path, tasks_run, capsys):
    matrix.main(options_for(shared, tmp_path, "--quant", "none", "int8"))
    assert tasks_run == ["arc", "arc", "truthfulqa", "truthfulqa"]
    output = capsys.readouterr()
    for expected in ("ARC (6)", "TruthfulQA (6)", f"{STORIES} int8", "mc1", "mc2"):
        assert expected in output.out
    assert "[4/4] truthfulqa, llama-tinystories-656k int8" in output.err
    assert (tmp_path / "matrix_arc_truthfulqa.md").read_text().count("\n") == 4
    names = {path.name for path in (tmp_path / STORIES).glob("*_0shot_cpu_float32_*.run.jsonl")}
    runs = product(("arc", "truthfulqa"), ("none", "int8"))
    assert names == {f"{task}_0shot_cpu_float32_{quant}.run.jsonl" for task, quant in runs}
    before = {path: path.read_bytes() for path in (tmp_path / STORIES).iterdir()}
    matrix.main(options_for(shared, tmp_path, "--quant", "int8", "none"))
    assert {path: path.read_bytes() for path in (tmp_path / STORIES).iterdir()} == before
    rows = (tmp_path / "matrix_arc_truthfulqa.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {STORIES}", f"| {STORIES} int8"]  # unquantized first
    assert "arc: " not in capsys.readouterr().err  # no progress: nothing was left to do


def test_a_failed_run_does_not_end_the_others(shared, tmp_path, tasks_run, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(shared / "checkpoints" / STORIES, broken)
    (broken / "config.json").unlink()
    (broken / "config.json").write_text("{}")
    with pytest.raises(BareloopError, match=r"2 of 4 runs failed \(arc, broken; truthfulqa, broken\)"):
        matrix.main(options_for(shared, tmp_path, "--model", str(broken)))
    assert "arc, broken failed: " in capsys.readouterr().err
    rows = (tmp_path / "matrix_arc_truthfulqa.md").read_text().splitlines()
    assert rows[-1].startswith("| broken | failed | failed")
    assert "failed" not in rows[-2]


def test_a_killed_matrix_continues(shared, tmp_path, tasks_run, capsys):
    """kill -9 of the program ends the process of its run, too, and loses no saved batch."""
    arguments = ["run", "--tasks", "arc", "--model", str(shared / "checkpoints" / STORIES), "--limit", "20"]
    arguments += ["--data", str(shared / "data"), "--device", "cpu", "--output-dir", str(tmp_path)]
    arguments += ["--batch-tokens", "400"]
    path = tmp_path / STORIES / "arc_0shot_cpu_float32_none.run.jsonl"
    with paused(tmp_path / "pause", "evals", arguments, batches=3) as process:
        process.send_signal(signal.SIGKILL)
    before = path.read_text()
    assert len(before.splitlines()) > 3
    with exclusive(path):  # waits for the process of the run, which ends after its parent
        pass
    matrix.main(matrix.parser().parse_args(arguments[1:]))
    assert path.read_text().startswith(before)
    keys = [(row["subject"], row["index"]) for row in map(json.loads, path.read_text().splitlines()[1:])]
    assert len(keys) == len(set(keys)) == 40
    assert "ARC (40)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--tasks", "mmlu", "--limit", "0"], "--limit 0: use 1 or more"),
        (["--tasks", "mmlu", "--quant", "int3"], "unknown weight format 'int3'"),
        (["--tasks", "mmlu", "--data", "."], "has no folder arc"),
    ],
)
def test_wrong_flags_are_refused_before_any_work(shared, tmp_path, tasks_run, flags, line):
    with pytest.raises(UsageError, match=line):
        matrix.main(options_for(shared, tmp_path, *flags))
    assert tasks_run == []


def test_flags_reach_the_benchmarks_that_have_them(shared, tmp_path):
    options = options_for(shared, tmp_path, "--shots", "2", "--batch-size", "4", "--subjects", "anatomy", "--fresh")
    for task in BENCHMARKS:
        flags = matrix.flags(options, MatrixRun(task, "demo", "int8"))
        parsed = matrix.benchmark_program(task)[0].parse_args(flags)
        assert (parsed.model, parsed.quant, parsed.limit, parsed.fresh) == (["demo"], "int8", 3, True)
        if task != "truthfulqa":
            assert parsed.shots in (2, [2])


def test_servers_are_asked_for_every_benchmark(shared, tmp_path):
    flags = [
        "--tasks",
        *BENCHMARKS,
        "-m",
        "big",
        "--url",
        "http://a",
        "http://b/v1",
        "--tokenizer",
        "demo",
        "--limit",
        "3",
    ]
    options = matrix.parser().parse_args([*flags, "--concurrency", "2", "--api-key-file", "key", "--max-length", "99"])
    for task in BENCHMARKS:
        parsed = matrix.benchmark_program(task)[0].parse_args(matrix.flags(options, MatrixRun(task, "big", "remote")))
        assert (parsed.model, parsed.url, parsed.tokenizer) == (["big"], ["http://a", "http://b/v1"], "demo")
        assert (parsed.concurrency, parsed.api_key_file, parsed.max_length, parsed.limit) == (2, "key", 99, 3)
        assert (parsed.quant, parsed.device, parsed.dtype) == ("auto", "auto", "auto")


def test_runs_on_servers_are_in_the_table(tmp_path, tasks_run, capsys):
    llm = LLM.load("demo", device="cpu")
    with serving(answers(llm)) as server:
        flags = ["--tasks", "mmlu", "--url", server.url, "--tokenizer", "demo", "--limit", "1", "--shots", "0"]
        options = matrix.parser().parse_args([*flags, "--data", str(tmp_path), "--output-dir", str(tmp_path)])
        shutil.copytree(embedded.QUESTIONS, tmp_path / "mmlu")
        matrix.main(options)
    assert tasks_run == ["mmlu"]
    assert "demo remote" in capsys.readouterr().out


def test_a_gguf_model_is_run_in_its_own_format(draw_tiny, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    from engine import kernels
    from tests.engine.checkpoints.gguf.converter import convert

    if not kernels.available():
        pytest.skip("needs the C++ kernels")
    monkeypatch.setattr("engine.checkpoints.gguf.source.user_cache", lambda name: tmp_path / "cache" / name)
    folder = draw_tiny("llama", hidden_size=96, intermediate_size=160).folder
    files = [str(convert(folder, tmp_path / f"{kind}.gguf", kind)) for kind in ("F16", "Q8_0")]
    options = matrix.parser().parse_args(["--model", *files, str(tmp_path / "missing"), "--device", "cpu"])
    assert list(matrix.choose_formats(options).values()) == ["none", "gguf", "none"]


def test_a_benchmark_with_a_program_of_its_own_is_named(capsys):
    with pytest.raises(SystemExit):
        matrix.parser().parse_args(["--tasks", "mt_bench"])
    assert "mt_bench has a program of its own: python -m evals.mt_bench" in capsys.readouterr().err
