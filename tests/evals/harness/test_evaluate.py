"""Resuming: a run that is killed, interrupted, cut short or extended has the same bits as an undisturbed one."""

from __future__ import annotations

import gzip
import json
import random
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from engine.runtime.files import AppendFile
from evals.runs.run_file import RunFile, read
from tests.evals import lm_harness
from tests.evals.paused import paused

pytestmark = pytest.mark.usefixtures("mmlu_read_once")

STORIES = "llama-tinystories-656k"
SUBJECTS = ("anatomy", "econometrics")


def arguments(shared: Path, output: Path, *more: str, model: Path | None = None) -> list[str]:
    """Arguments of evals.mmlu for a run of many small batches. 70 questions of a subject are more than a block."""
    result = ["-m", str(model or shared / "checkpoints" / STORIES), "--data", str(shared / "data" / "mmlu")]
    result += ["--device", "cpu", "--output-dir", str(output), "--shots", "1", "--batch-tokens", "400"]
    return [*result, "--limit", "70", "--subjects", *SUBJECTS, *more]


def run(shared: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return lm_harness.run_mmlu(arguments(shared, output, *more))


def results(output: Path) -> dict[tuple[str, int], dict[str, object]]:
    """The records of the run file without their times. Fails if a question has two lines."""
    path = run_file(output)
    keys = [(row["subject"], row["index"]) for row in map(json.loads, path.read_text().splitlines()[1:])]
    assert len(keys) == len(set(keys))
    return {key: {name: value for name, value in row.items() if name != "times"} for key, row in read(path)[1].items()}


def run_file(output: Path) -> Path:
    return output / STORIES / "mmlu_1shot_cpu_float32_none.run.jsonl"


@pytest.fixture(scope="module")
def undisturbed(shared, tmp_path_factory):
    """The results of a run that nothing disturbs."""
    output = tmp_path_factory.mktemp("undisturbed")
    process = run(shared, output)
    assert process.returncode == 0, process.stderr
    return results(output)


class Stopped(BaseException):
    """Ends a run in this process in place of a kill."""


def stop_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Make a run in this process end without clean-up after it has saved this number of batches."""
    append, count = RunFile.append, 0

    def append_and_stop(self, records) -> None:
        nonlocal count
        append(self, records)
        count += 1
        if count == batches:
            raise Stopped

    monkeypatch.setattr(RunFile, "append", append_and_stop)


def test_a_run_ended_abruptly_twelve_times_has_the_same_bits(shared, undisturbed, tmp_path):
    """kill -9 of a process, abrupt ends in this process, and torn last lines."""
    generator = random.Random(4)
    with paused(tmp_path / "pause", "evals.mmlu", arguments(shared, tmp_path), batches=2) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    for _ in range(11):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, generator.randint(1, 3))
            with pytest.raises(Stopped):
                run(shared, tmp_path)
        content = run_file(tmp_path).read_bytes()
        if generator.random() < 0.7 and len(content) > 2000:  # as after a power cut
            run_file(tmp_path).write_bytes(content[: -generator.randrange(1, 400)])
    assert 0 < len(read(run_file(tmp_path))[1]) < len(undisturbed)
    process = run(shared, tmp_path)
    assert process.returncode == 0, process.stderr
    assert results(tmp_path) == undisturbed


def test_limit_and_subjects_extend_the_same_file(shared, undisturbed, tmp_path):
    for flags in (["--limit", "1"], ["--limit", "7"], ["--subjects", "abstract_algebra"], ["--limit", "40"], []):
        process = run(shared, tmp_path, *flags)
        assert process.returncode == 0, process.stderr
    extended = results(tmp_path)
    assert {key: extended[key] for key in undisturbed} == undisturbed
    assert len(extended) == len(undisturbed) + 70


def test_a_finished_run_computes_and_writes_nothing(shared, tmp_path):
    flags = ("--limit", "5", "--save-question-data")
    assert run(shared, tmp_path, *flags).returncode == 0
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / STORIES).iterdir()}
    again = run(shared, tmp_path, *flags)
    assert "mmlu:" not in again.stderr  # no progress: no model was loaded
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / STORIES).iterdir()} == before
    (results_file,) = (tmp_path / STORIES).glob("results_*.json")
    assert f"results: {results_file}" in again.stderr
    assert run(shared, tmp_path, "--limit", "6").returncode == 0
    assert len([*(tmp_path / STORIES).glob("results_*.json")]) == 2
    time = results_file.stem.removeprefix("results_")
    (tmp_path / STORIES / f"samples_mmlu_anatomy_{time}.jsonl").unlink()
    assert run(shared, tmp_path, *flags).returncode == 0  # an incomplete export is written again
    assert len([*(tmp_path / STORIES).glob("results_*.json")]) == 3


def test_a_run_that_never_begins_leaves_no_file(shared, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(shared / "checkpoints" / STORIES, model, copy_function=shutil.copyfile)
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-8])
    process = lm_harness.run_mmlu(arguments(shared, tmp_path / "results", model=model))
    assert process.returncode == 1
    assert [path for path in (tmp_path / "results").rglob("*") if path.is_file()] == []


def test_ctrl_c_prints_one_line_with_the_command_that_continues(shared, undisturbed, tmp_path):
    with paused(tmp_path / "pause", "evals.mmlu", arguments(shared, tmp_path), batches=2) as process:
        process.send_signal(signal.SIGINT)
        _, message = process.communicate()
    assert process.returncode == 130
    assert message.count("\n") == 1
    assert "questions are saved in" in message
    command = message.partition("to continue: python -m evals.mmlu ")[2].split()
    assert 0 < len(results(tmp_path)) < len(undisturbed)
    assert lm_harness.run_mmlu(command).returncode == 0
    assert results(tmp_path) == undisturbed


@pytest.mark.parametrize("name", ["weights", "tokenizer", "config.json", "data", "--batch-tokens"])
def test_a_change_of_model_data_or_batches_is_refused_by_name(shared, tmp_path, name):
    model, data = tmp_path / STORIES, tmp_path / "data"
    shutil.copytree(shared / "checkpoints" / STORIES, model)
    data.mkdir()
    for split in ("dev", "test"):
        shutil.copy(shared / "data" / "mmlu" / f"{split}.jsonl.gz", data)
    for path in (model, data, *model.iterdir(), *data.iterdir()):
        path.chmod(0o755)
    command = arguments(shared, tmp_path, "--data", str(data), "--limit", "2", model=model)
    first = lm_harness.run_mmlu(command)
    assert first.returncode == 0, first.stderr
    if name == "weights":
        content = bytearray((model / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (model / "model.safetensors").write_bytes(content)
    elif name == "tokenizer":
        (model / "tokenizer.json").write_text((model / "tokenizer.json").read_text() + " ")
    elif name == "data":
        text = gzip.decompress((data / "test.jsonl.gz").read_bytes()).decode()
        (data / "test.jsonl.gz").write_bytes(gzip.compress(text.replace("astronomy", "astronomia", 1).encode()))
    elif name == "--batch-tokens":
        command += ["--batch-tokens", "77"]
    else:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"my_note": "changed"}))
    again = lm_harness.run_mmlu(command)
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1
    assert f"was started with other {name}" in again.stderr or f"was started with another {name}" in again.stderr
    if name == "weights":
        assert lm_harness.run_mmlu([*command, "--fresh"]).returncode == 0


def test_a_full_disk_leaves_the_saved_batches(shared, undisturbed, tmp_path):
    """A limit on the size of files fails like a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        process = run(shared, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert process.returncode == 1
    assert "cannot write" in process.stderr
    assert "run the same command to continue" in process.stderr
    assert 0 < len(results(tmp_path)) < len(undisturbed)
    assert run(shared, tmp_path).returncode == 0
    assert results(tmp_path) == undisturbed


def test_a_second_writer_is_refused(shared, tmp_path):
    with AppendFile(run_file(tmp_path)):
        second = run(shared, tmp_path)
    assert second.returncode == 1
    assert "another process is writing" in second.stderr
