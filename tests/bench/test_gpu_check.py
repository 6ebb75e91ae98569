"""The GPU check: a part that fails does not end the others, and everything is in the report."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bench import gpu_check
from bench.gpu import correctness, shard, timing
from bench.gpu.parts import PARTS, gpu_test_files, pytest_commands
from bench.gpu.processes import ROOT, run_together
from bench.gpu.report import GOALS, LARGE, SMALL, Result, markdown
from bench.gpu_check import PLAN, Part
from engine.runtime.errors import BareloopError, UsageError

PYTHON = [sys.executable, "-S", "-c"]  # starts at once, without the packages that are installed
# Part -> a program, and its time in seconds.
PROGRAMS = {
    "first": ("print('loading'); print('{\"speed\": 1234.5}')", 600),
    "raising": ("print('loading'); print('{\"speed\": 2.5}'); raise ValueError('wrong shape')", 600),
    "crashing": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 600),
    "hanging": ("import time; print('{\"speed\": 3.5}', flush=True); time.sleep(1e6)", 2),
    "skipped": ('print(\'{"skipped": "needs CUDA"}\')', 600),
    "last": ('print(\'{"names": {"a": 1.0}}\')', 600),
}


def options(*flags: str):
    return gpu_check.parser().parse_args(list(flags))


@pytest.fixture
def programs(monkeypatch):
    """Replace the parts by the programs above."""
    monkeypatch.setattr(gpu_check, "PLAN", tuple(Part(name, seconds) for name, (_, seconds) in PROGRAMS.items()))
    monkeypatch.setattr(gpu_check, "MIN_LIMIT", 0)
    monkeypatch.setattr(gpu_check, "command_of", lambda part, _: [*PYTHON, PROGRAMS[part.name][0]])


def test_parts_that_fail_crash_or_hang_are_recorded_and_the_others_run(programs, tmp_path, capsys):
    with pytest.raises(BareloopError, match="3 of 6 parts did not pass: raising, crashing, hanging"):
        gpu_check.main(options("--device", "cpu", "--report", str(tmp_path / "report"), "--budget", "3600"))
    results = json.loads((tmp_path / "report.json").read_text())
    assert [(result["part"], result["status"], result["error"]) for result in results] == [
        ("first", "passed", ""),
        ("raising", "failed", "exit status 1: ValueError: wrong shape"),
        ("crashing", "failed", "ended by SIGSEGV"),
        ("hanging", "timed out", "exceeded its limit of 4 s"),
        ("skipped", "skipped", "needs CUDA"),
        ("last", "passed", ""),
    ]
    assert [result["figures"].get("speed") for result in results] == [1234.5, 2.5, None, 3.5, None, None]
    assert results[1]["output"][0] == "loading" and results[1]["output"][-1] == "ValueError: wrong shape"
    report = (tmp_path / "report.md").read_text()
    assert "| first | speed | 1,234 |" in report and "| last | names | a 1 |" in report
    assert "## raising: failed" in report and report in capsys.readouterr().out


def test_parts_are_skipped_once_the_budget_is_spent(programs, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "MIN_LIMIT", 10)
    gpu_check.main(options("--device", "cpu", "--report", str(tmp_path / "report"), "--budget", "5"))
    assert {result["status"] for result in json.loads((tmp_path / "report.json").read_text())} == {"skipped"}


@pytest.mark.parametrize(
    ("left", "later", "limit"),
    [(480, 450, 30), (480, 440, 40), (480, 100, 60), (40, 200, 30), (20, 0, 20), (-1, 9, -1)],
)
def test_a_part_gets_its_time_and_as_much_again_of_what_earlier_ones_left(left, later, limit):
    assert gpu_check.limit_of(Part("int4", 30), left, later) == limit


def test_all_parts_fit_into_the_budget():
    assert sum(part.seconds for part in PLAN) <= gpu_check.BUDGET <= 8 * 60
    assert {part.name for part in PLAN} == PARTS.keys()


def test_a_shape_is_measured_once_by_each_part():
    parts = gpu_check.choose_parts(["int4", "machine", "bfloat16"], "tiny")
    assert [(part.name, part.shape) for part in parts] == [("machine", ""), ("bfloat16", "tiny"), ("int4", "tiny")]
    assert [part.shape for part in gpu_check.choose_parts(["int4"], None)] == [LARGE, SMALL]


@pytest.mark.parametrize("flags", [("--parts", "int3"), ("--part", "int3"), ("--budget", "0")])
def test_a_wrong_flag_is_refused(flags):
    with pytest.raises(UsageError, match=r"unknown part 'int3'; use machine, tests|--budget 0: use a positive number"):
        gpu_check.main(options(*flags))


@pytest.mark.parametrize("part", ["machine", "tests", "bfloat16", "int4", "scoring", "products", "attention"])
def test_a_part_runs_on_the_cpu_with_a_tiny_shape(part, capsys):
    gpu_check.main(options("--part", part, "--device", "cpu", "--shape", "tiny"))
    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert figures and all(value is not None for each in figures for value in each.values())
    assert ({"skipped": "needs CUDA"} in figures) == (part == "tests")


@pytest.mark.parametrize("family", ["gemma2", "mamba"])
def test_a_family_agrees_with_itself_on_the_cpu(family):
    figures = correctness.compare(family, "cpu")
    assert figures["failures"] == [] and figures["error of logits"] == 0


def test_a_family_that_differs_is_reported(monkeypatch):
    monkeypatch.setattr(correctness, "TOLERANCE", -1)
    monkeypatch.setattr(correctness, "check_bfloat16", lambda *_: 1 / 0)
    failures = correctness.compare("llama", "cpu")["failures"]
    assert failures[0] == "float32 logits differ by 0.0e+00" and "ZeroDivisionError" in failures[-1]


def test_goals_and_ratios_are_in_the_report():
    row, rows = "decode 1, tokens/s", "decode 16, tokens/s"
    share = "decode 1, share of the read bandwidth"
    results = [
        Result("bfloat16", SMALL, "passed", figures={row: 100.0, rows: 1300.0, share: 0.5}),
        Result("bfloat16", LARGE, "timed out", figures={row: 40.0}),
        Result("int4", LARGE, "passed", figures={row: 100.0}),
        Result("scoring", SMALL, "failed"),
    ]
    report = markdown(results, "cuda")
    assert f"| {LARGE}, rows: 1, int4 / bfloat16 | 2.50 |" in report
    goals = [line.split(" | ")[1:] for line in report.splitlines()[-len(GOALS) :]]
    assert goals == [
        ["0.50", "no |"],
        ["-", "not measured |"],
        ["13.00", "yes |"],
        ["-", "not measured |"],
        ["2.50", "yes |"],
    ]


def test_programs_that_run_together_are_reported_each():
    commands = {name: [*PYTHON, f"import sys; print('{name}'); sys.exit({len(name)})"] for name in ("a", "bb", "ccc")}
    assert sorted(run_together(commands, 2)) == [("a", 1, ["a"]), ("bb", 2, ["bb"]), ("ccc", 3, ["ccc"])]


def test_the_shards_of_a_file_are_all_of_its_tests():
    commands = [command for name, command in pytest_commands("cuda").items() if "test_norms.py" in name]
    shards = [command[command.index("--shard") + 1] for command in commands]
    tests = [[*range(8)] for _ in shards]
    for part, items in zip(shards, tests, strict=True):
        shard.pytest_collection_modifyitems(SimpleNamespace(getoption=lambda _, value=part: value), items)
    assert len(shards) > 1 and all(tests)
    assert sorted(number for items in tests for number in items) == [*range(8)]


def test_the_time_of_a_call_in_a_graph(monkeypatch):
    """With a clock of its own in place of a GPU's: each call takes 25 µs, each replay as much as its calls."""
    calls, times = [], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            times.append(len(calls))

        def synchronize(self): ...

        def elapsed_time(self, end):
            return 0.025 * (times[-1] - times[-2])

    def record(work, device):
        assert device.type == "cuda"
        return work, work()

    monkeypatch.setattr(timing, "record", record)
    monkeypatch.setattr(timing, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    seconds = timing.seconds_of_each([lambda: calls.append(1)] * 3, torch.device("cuda"))
    assert seconds == pytest.approx(25e-6)


IMPORT_FILES = """
import contextlib, pytest, runpy, sys

for package in ("datasets", "bitsandbytes", "prompt_toolkit", "platformdirs", "gguf", "lm_eval", "hypothesis", "rich"):
    sys.modules[package] = None  # importing it raises ImportError
for file in sys.argv[1:]:
    with contextlib.suppress(pytest.skip.Exception):  # without Triton
        runpy.run_path(file, run_name="module")
"""


def test_the_gpu_tests_and_parts_import_only_what_a_bare_image_has():
    files = [str(path) for path in gpu_test_files()]
    assert any("test_panels" in file for file in files) and not any("test_gpu_check" in file for file in files)
    program = [sys.executable, "-c", IMPORT_FILES, "tests/conftest.py", "bench/gpu/parts.py", *files]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
