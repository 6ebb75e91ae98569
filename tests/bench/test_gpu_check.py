"""The GPU check: a part that fails does not end the others, and everything is in the report."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench import gpu_check
from engine.runtime.errors import BareloopError, UsageError

# Part -> a program, and its time limit in seconds.
PROGRAMS = {
    "first": ("print('loading'); print('{\"speed\": 1234.5}')", 600),
    "raising": ("print('loading'); raise ValueError('wrong shape')", 600),
    "crashing": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 600),
    "hanging": ("import time; time.sleep(1e6)", 0.2),
    "last": ('print(\'{"names": {"a": 1.0}}\')', 600),
}


def options(*flags: str):
    return gpu_check.parser().parse_args(list(flags))


@pytest.fixture
def programs(monkeypatch):
    """Replace the parts by the programs above."""
    monkeypatch.setattr(gpu_check, "PARTS", {part: limit for part, (_, limit) in PROGRAMS.items()})
    monkeypatch.setattr(gpu_check, "MIN_LIMIT", 0)
    monkeypatch.setattr(gpu_check, "command_of", lambda part, _: [sys.executable, "-c", PROGRAMS[part][0]])


def test_parts_that_fail_crash_or_hang_are_recorded_and_the_others_run(programs, tmp_path, capsys):
    with pytest.raises(BareloopError, match="3 of 5 parts did not pass: raising, crashing, hanging"):
        gpu_check.main(options("--report", str(tmp_path / "report"), "--budget", "3600"))
    results = json.loads((tmp_path / "report.json").read_text())
    assert [(result["part"], result["status"], result["error"]) for result in results] == [
        ("first", "passed", ""),
        ("raising", "failed", "exit status 1: ValueError: wrong shape"),
        ("crashing", "failed", "ended by SIGSEGV"),
        ("hanging", "timed out", "exceeded its limit of 0 s"),
        ("last", "passed", ""),
    ]
    assert results[0]["figures"] == {"speed": 1234.5}
    assert results[1]["output"][0] == "loading" and results[1]["output"][-1] == "ValueError: wrong shape"
    report = (tmp_path / "report.md").read_text()
    assert "| first | speed | 1,234 |" in report and "| last | names | a 1 |" in report
    assert "## raising: failed" in report and report in capsys.readouterr().out


def test_parts_are_skipped_once_the_budget_is_spent(programs, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "MIN_LIMIT", 10)
    gpu_check.main(options("--report", str(tmp_path / "report"), "--budget", "5"))
    assert {result["status"] for result in json.loads((tmp_path / "report.json").read_text())} == {"skipped"}


@pytest.mark.parametrize("flags", [("--parts", "int3"), ("--part", "int3"), ("--budget", "0")])
def test_a_wrong_flag_is_refused(flags):
    with pytest.raises(UsageError, match=r"unknown part 'int3'; use machine, tests|--budget 0: use a positive number"):
        gpu_check.main(options(*flags))


@pytest.mark.parametrize("part", ["machine", "correctness", "bfloat16", "int4"])
def test_a_part_runs_on_the_cpu_with_a_tiny_shape(part, capsys):
    gpu_check.main(options("--part", part, "--device", "cpu", "--shape", "tiny"))
    figures = json.loads(capsys.readouterr().out)
    assert all(value is not None for value in figures.values())


IMPORT_FILES = """
import runpy, sys

for package in ("datasets", "bitsandbytes", "prompt_toolkit", "platformdirs", "gguf", "lm_eval", "hypothesis", "rich"):
    sys.modules[package] = None  # importing it raises ImportError
for file in sys.argv[1:]:
    runpy.run_path(file, run_name="module")
"""


def test_the_gpu_tests_import_only_what_a_bare_image_has():
    files = [argument for argument in gpu_check.command_of("tests", options()) if argument.endswith(".py")]
    assert files
    program = [sys.executable, "-c", IMPORT_FILES, "tests/conftest.py", *files]
    done = subprocess.run(program, cwd=gpu_check.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
