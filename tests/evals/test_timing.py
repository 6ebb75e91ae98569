"""The study: what is measured, what cannot be, what a second sitting does, and what it tells."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from engine.runtime.errors import BareloopError, UsageError
from evals import timing
from evals.runs.measurements import Configuration, Measurement

GOOD = Measurement(
    questions=4, accuracy=0.5, stderr=0.25, tokens=100, load=0.1, real=2.0, cpu=3.0, gpu=None, cycles=None,
    peak_memory=300_000_000, gpu_memory=None, weights=19_000_000,
)  # fmt: skip
SETTINGS = {"shots": 0, "subjects": ["astronomy"], "format": "float32", "machine": "a CPU, 2 threads"}


def program(*more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "evals.timing", *more], capture_output=True, text=True, timeout=300)


def study(monkeypatch, tmp_path, *more, fails=None):
    """The program with cells that are not really measured; -> those that were asked for."""
    asked = []

    def apart(function, options, *arguments, debug):
        if function is timing.prepare:
            away = {cell: "it is not here" for cell in timing.cells(options) if cell.device == "mps"}
            return timing.Plan(dict.fromkeys(options.model, SETTINGS), away)
        model, cell = arguments
        asked.append(f"{model} {cell}")
        if error := (fails or {}).get(str(cell)):
            raise error
        return GOOD

    monkeypatch.setattr(timing, "apart", apart)
    words = ["--devices", "cpu", "mps", "--formats", "none", "8bit", "int8", "--output-dir", str(tmp_path), *more]
    timing.main(timing.parser().parse_args(words))
    return asked


def test_one_study_from_the_flags_to_the_files(tmp_path):
    """On the demo model, in processes of their own; then again, where nothing is left to do."""
    words = ["--devices", "cpu", "mps:1", "--formats", "none", "int8", "--limit", "2", "--shots", "0"]
    done = program(*words, "--output-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "demo"
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "timing.jsonl", "timing.md", "timing.json", "timing.png", "timing.svg",
    }  # fmt: skip
    assert {path.parent.parent.name for path in folder.rglob("*.run.jsonl")} == {"cpu_none", "cpu_int8"}
    told = json.loads((folder / "timing.json").read_text())
    plain, small, *rest = told["cells"]
    assert (plain["format"], small["format"]) == ("none", "int8")
    assert plain["questions"] == 4
    assert plain["weights"] > 3.5 * small["weights"]
    for own in (plain, small):
        assert own["device"] == "cpu"
        assert min(own["load"], own["real"], own["cpu"]) > 0
        assert own["peak_memory"] > own["weights"]
        assert own["gpu"] is own["gpu_memory"] is None
    assert plain["speedup"] == 1
    assert small["speedup"] == pytest.approx(plain["real"] / small["real"])
    assert all("Apple's GPU is not available here" in own["reason"] for own in rest)
    assert "threads, torch" in told["settings"]["machine"]
    assert "0-shot, astronomy, business_ethics, 4 questions" in done.stdout
    assert "not measured: mps:1 (none, int8): device mps: Apple's GPU" in done.stdout
    assert "demo: 2/2" in done.stderr

    again = program(*words, "--output-dir", str(tmp_path))
    assert again.returncode == 0, again.stderr
    assert "2 of 2 cells were measured before" in again.stderr
    assert again.stdout == done.stdout


def test_the_report_names_the_machine_the_command_and_every_cell(monkeypatch, tmp_path, capsys):
    asked = study(monkeypatch, tmp_path, fails={"cpu llm.int8": BareloopError("out of memory")})
    assert asked == ["demo cpu none", "demo cpu llm.int8", "demo cpu int8"]
    text = (tmp_path / "demo" / "timing.md").read_text()
    for expected in (
        "# MMLU by device and weight format: demo", "0-shot, astronomy, 4 questions, 100 tokens, float32",
        "a CPU, 2 threads; 20", "| device | format | accuracy % |", "| cpu | none | 50.00 ± 25.00 | 0.10 | 2.00 |",
        "| cpu | llm.int8 | out of memory |", "| mps | none, int8, llm.int8 | it is not here |", "](timing.png)",
    ):  # fmt: skip
        assert expected in text, expected
    shown = capsys.readouterr().out
    assert "not measured: cpu (llm.int8): out of memory" in shown
    assert "50.00 ± 25.00" in shown


def test_a_second_sitting_measures_what_is_missing(monkeypatch, tmp_path, capsys):
    study(monkeypatch, tmp_path, fails={"cpu llm.int8": BareloopError("its process was ended by SIGKILL")})
    assert study(monkeypatch, tmp_path) == ["demo cpu llm.int8"]
    assert "2 of 3 cells were measured before" in capsys.readouterr().err
    assert study(monkeypatch, tmp_path, "--formats", "int4") == ["demo cpu int4"]
    assert study(monkeypatch, tmp_path) == []
    assert len(study(monkeypatch, tmp_path, "--fresh")) == 3
    assert len(list((tmp_path / "demo").glob("timing.jsonl.*.old"))) == 1


def test_ctrl_c_says_what_is_saved_and_what_to_type(monkeypatch, tmp_path):
    with pytest.raises(KeyboardInterrupt, match=r"interrupted: 2 of 3 cells are saved in .*to go on: python"):
        study(monkeypatch, tmp_path, fails={"cpu int8": KeyboardInterrupt()})
    assert study(monkeypatch, tmp_path) == ["demo cpu int8"]


def test_every_model_has_a_table_and_one_that_fails_ends_none(monkeypatch, tmp_path):
    assert len(study(monkeypatch, tmp_path, "-m", "demo", "owner/other", "demo")) == 6
    assert (tmp_path / "owner__other" / "timing.md").exists()
    broken = dict.fromkeys(("cpu none", "cpu llm.int8", "cpu int8"), BareloopError("it is broken"))
    with pytest.raises(BareloopError, match=r"nothing could be measured of demo \(cpu none: it is broken\)"):
        study(monkeypatch, tmp_path, "--fresh", fails=broken)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--formats", "int3"], "unknown weight format 'int3'; use none, int8"),
        (["--devices", "tpu"], "unknown device 'tpu'; use cpu, cuda, cuda:N or mps"),
        (["--limit", "0"], "--limit 0: use 1 or more"),
        (["-m", "a/b", "a__b"], "two models would share one folder of results"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_done(monkeypatch, tmp_path, words, line):
    with pytest.raises(UsageError, match=line):
        study(monkeypatch, tmp_path, *words)
    assert not list(tmp_path.iterdir())


def test_what_only_the_data_tells_is_a_usage_error_too(tmp_path):
    done = program("--devices", "cpu", "--shots", "9", "--output-dir", str(tmp_path))
    assert done.returncode == 2
    assert "--shots 9: the dev split of astronomy has 5 examples" in done.stderr.splitlines()[-1]


def test_a_cell_that_the_machine_lacks_is_known_before():
    assert timing.obstacle(Configuration("cpu", "int8")) == ""
    assert timing.obstacle(Configuration("cuda:99", "none")).startswith("device cuda:99: ")
    assert "use --" not in timing.obstacle(Configuration("cuda:99", "none"))


def test_bitsandbytes_is_missed_by_name(monkeypatch):
    monkeypatch.setattr("engine.quant.bitsandbytes.find_spec", lambda name: None)
    assert (
        timing.obstacle(Configuration("cpu", "nf4"))
        == "this weight format needs bitsandbytes: pip install bareloop[bnb]"
    )


def test_help_needs_no_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "evals.timing", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "--devices" in done.stdout
    assert " torch\n" not in done.stderr
