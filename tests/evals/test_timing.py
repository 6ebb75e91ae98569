"""The timing study: measuring, reporting, continuing, and configurations that this machine lacks."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from engine.runtime.errors import BareloopError, UsageError
from evals import timing
from evals.harness.subprocess_call import run_in_subprocess
from evals.runs.measurements import Configuration, Measurement
from evals.studies import timing as study

MEASUREMENT = Measurement(
    questions=4, accuracy=0.5, stderr=0.25, tokens=100, load=0.1, real=2.0, cpu=3.0, gpu=None, cycles=None,
    peak_memory=300_000_000, gpu_memory=None, weights=19_000_000,
)  # fmt: skip
SETTINGS = {"shots": 0, "subjects": ["astronomy"], "format": "float32", "machine": "a CPU, 2 threads"}


def run(*arguments: str) -> None:
    timing.main(timing.parser().parse_args(arguments))


def run_faked(monkeypatch, tmp_path, *more, errors=None):
    """Run the program with faked measurements. Returns the configurations that it measured."""
    measured = []

    def fake(function, options, load_task, *arguments, debug):
        if function is study.prepare:
            obstacles = {key: "it is not here" for key in study.configurations(options) if key.device == "mps"}
            return study.Plan(dict.fromkeys(options.model, SETTINGS), obstacles)
        model, configuration = arguments
        measured.append(f"{model} {configuration}")
        if error := (errors or {}).get(str(configuration)):
            raise error
        return MEASUREMENT

    monkeypatch.setattr(study, "run_in_subprocess", fake)
    monkeypatch.setattr(study, "plot_measurements", lambda *_: None)
    run("--devices", "cpu", "mps", "--formats", "none", "8bit", "int8", "--output-dir", str(tmp_path), *more)
    return measured


def test_a_study_from_the_flags_to_the_files(monkeypatch, tmp_path, capsys):
    """With the demo model; then again, when nothing is left to do. To save time, only int8 is in a subprocess."""

    def run_some_here(function, *arguments, debug):
        is_int8 = arguments[-1] == Configuration("cpu", "int8")
        return run_in_subprocess(function, *arguments) if is_int8 else function(*arguments)

    monkeypatch.setattr(study, "run_in_subprocess", run_some_here)
    arguments = ["--devices", "cpu", "mps:1", "--formats", "none", "int8", "--limit", "2", "--shots", "0"]
    run(*arguments, "--output-dir", str(tmp_path))
    output = capsys.readouterr()
    folder = tmp_path / "demo"
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "timing.jsonl", "timing.md", "timing.json", "timing.png", "timing.svg",
    }  # fmt: skip
    assert {path.parent.parent.name for path in folder.rglob("*.run.jsonl")} == {"cpu_none", "cpu_int8"}
    report = json.loads((folder / "timing.json").read_text())
    plain, small, *others = report["cells"]
    assert (plain["format"], small["format"]) == ("none", "int8")
    assert plain["questions"] == 4
    assert plain["weights"] > 3.5 * small["weights"]
    for row in (plain, small):
        assert row["device"] == "cpu"
        assert min(row["load"], row["real"], row["cpu"]) > 0
        assert row["peak_memory"] > row["weights"]
        assert row["gpu"] is row["gpu_memory"] is None
    assert plain["speedup"] == 1
    assert small["speedup"] == pytest.approx(plain["real"] / small["real"])
    assert all("Apple's GPU is not available here" in row["reason"] for row in others)
    assert "threads, torch" in report["settings"]["machine"]
    assert "0-shot, astronomy, business_ethics, 4 questions" in output.out
    assert "not measured: mps:1 (none, int8): device mps: Apple's GPU" in output.out
    assert "demo: 2/2" in output.err

    run(*arguments, "--output-dir", str(tmp_path))
    again = capsys.readouterr()
    assert "2 of 2 configurations were measured before" in again.err
    assert again.out == output.out


def test_the_report_names_the_machine_the_command_and_every_configuration(monkeypatch, tmp_path, capsys):
    measured = run_faked(monkeypatch, tmp_path, errors={"cpu llm.int8": BareloopError("out of memory")})
    assert measured == ["demo cpu none", "demo cpu llm.int8", "demo cpu int8"]
    text = (tmp_path / "demo" / "timing.md").read_text()
    for expected in (
        "# MMLU by device and weight format: demo", "0-shot, astronomy, 4 questions, 100 tokens, float32",
        "a CPU, 2 threads; 20", "| device | format | accuracy % |", "| cpu | none | 50.00 ± 25.00 | 0.10 | 2.00 |",
        "| cpu | llm.int8 | out of memory |", "| mps | none, int8, llm.int8 | it is not here |", "](timing.png)",
    ):  # fmt: skip
        assert expected in text, expected
    output = capsys.readouterr().out
    assert "not measured: cpu (llm.int8): out of memory" in output
    assert "50.00 ± 25.00" in output


def test_a_second_session_measures_what_is_missing(monkeypatch, tmp_path, capsys):
    run_faked(monkeypatch, tmp_path, errors={"cpu llm.int8": BareloopError("its process was ended by SIGKILL")})
    assert run_faked(monkeypatch, tmp_path) == ["demo cpu llm.int8"]
    assert "2 of 3 configurations were measured before" in capsys.readouterr().err
    assert run_faked(monkeypatch, tmp_path, "--formats", "int4") == ["demo cpu int4"]
    assert run_faked(monkeypatch, tmp_path) == []
    assert len(run_faked(monkeypatch, tmp_path, "--fresh")) == 3
    assert len(list((tmp_path / "demo").glob("timing.jsonl.*.old"))) == 1


def test_ctrl_c_prints_what_is_saved_and_the_command_that_continues(monkeypatch, tmp_path):
    message = r"interrupted: 2 of 3 configurations are saved in .*to continue: python"
    with pytest.raises(KeyboardInterrupt, match=message):
        run_faked(monkeypatch, tmp_path, errors={"cpu int8": KeyboardInterrupt()})
    assert run_faked(monkeypatch, tmp_path) == ["demo cpu int8"]


def test_a_study_without_a_result_leaves_no_empty_file(monkeypatch, tmp_path):
    errors = dict.fromkeys(("cpu none", "cpu llm.int8", "cpu int8"), BareloopError("it is broken"))
    with pytest.raises(BareloopError, match=r"nothing could be measured of demo \(cpu none: it is broken\)"):
        run_faked(monkeypatch, tmp_path, errors=errors)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_every_model_has_a_table_and_a_failed_model_does_not_end_the_others(monkeypatch, tmp_path):
    assert len(run_faked(monkeypatch, tmp_path, "-m", "demo", "owner/other", "demo")) == 6
    assert (tmp_path / "owner__other" / "timing.md").exists()
    errors = dict.fromkeys(("cpu none", "cpu llm.int8", "cpu int8"), BareloopError("it is broken"))
    with pytest.raises(BareloopError, match=r"nothing could be measured of demo .*; nothing .* of owner/other "):
        run_faked(monkeypatch, tmp_path, "-m", "demo", "owner/other", "--fresh", errors=errors)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--formats", "int3"], "unknown weight format 'int3'; use none, int8"),
        (["--devices", "tpu"], "unknown device 'tpu'; use cpu, cuda, cuda:N or mps"),
        (["--limit", "0"], "--limit 0: use 1 or more"),
        (["-m", "a/b", "a__b"], "two models would share one folder of results"),
    ],
)
def test_wrong_flags_are_refused_before_any_work(monkeypatch, tmp_path, flags, line):
    with pytest.raises(UsageError, match=line):
        run_faked(monkeypatch, tmp_path, *flags)
    assert not list(tmp_path.iterdir())


def test_a_flag_that_the_data_does_not_allow_is_a_usage_error(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "run_in_subprocess", lambda function, *arguments, debug: function(*arguments))
    with pytest.raises(UsageError, match="--shots 9: the dev split of astronomy has 5 examples"):
        run("--devices", "cpu", "--shots", "9", "--output-dir", str(tmp_path))


def test_configurations_that_the_machine_lacks_are_known_in_advance():
    assert study.find_obstacle(Configuration("cpu", "int8")) == ""
    assert study.find_obstacle(Configuration("cuda:99", "none")).startswith("device cuda:99: ")
    assert "use --" not in study.find_obstacle(Configuration("cuda:99", "none"))


def test_a_missing_bitsandbytes_is_named(monkeypatch):
    monkeypatch.setattr("engine.quant.bitsandbytes.find_spec", lambda name: None)
    obstacle = study.find_obstacle(Configuration("cpu", "nf4"))
    assert obstacle == "this weight format needs bitsandbytes: pip install bareloop[bnb]"


def test_help_needs_no_torch():
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "evals.timing", "--help"], capture_output=True, text=True
    )
    assert process.returncode == 0
    assert "--devices" in process.stdout
    assert " torch\n" not in process.stderr
