"""Never lost: killed, interrupted, cut short, extended; the records have the same bits."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evals.runs.run_file import read
from tests.evals import lm_harness

STORIES = "llama-tinystories-656k"
SUBJECTS = ("anatomy", "astronomy", "econometrics")


def command(shared: Path, output: Path, *more: str, model: Path | None = None) -> list[str]:
    data = shared / "data" / "mmlu"
    words = [
        "-m",
        str(model or shared / "checkpoints" / STORIES),
        "--data",
        str(data),
        "--device",
        "cpu",
        "--output-dir",
        str(output),
    ]
    words += ["--shots", "1", "--batch-tokens", "400", "--subjects", *SUBJECTS]
    return [sys.executable, "-m", "evals.mmlu", *words, *more]


def run(shared: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return lm_harness.mmlu(command(shared, output, *more)[3:])


def results(output: Path) -> dict[tuple[str, int], dict[str, object]]:
    """The records without their times; the file itself has no line twice."""
    path = run_file(output)
    keys = [(row["subject"], row["index"]) for row in map(json.loads, path.read_text().splitlines()[1:])]
    assert len(keys) == len(set(keys))
    return {key: {name: own for name, own in row.items() if name != "times"} for key, row in read(path)[1].items()}


def run_file(output: Path) -> Path:
    return output / STORIES / "mmlu_1shot_cpu_float32_none.run.jsonl"


@pytest.fixture(scope="module")
def whole(shared, tmp_path_factory):
    """What a run says that nobody disturbs."""
    output = tmp_path_factory.mktemp("whole")
    done = run(shared, output)
    assert done.returncode == 0, done.stderr
    return results(output)


def test_killed_twelve_times_and_not_a_bit_different(shared, whole, tmp_path):
    """kill -9 at random points, from the imports to the last batch, torn lines among them."""
    chance = random.Random(4)
    kills = written = 0
    while kills < 12:
        process = subprocess.Popen(command(shared, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        size = run_file(tmp_path).stat().st_size if run_file(tmp_path).exists() else 0
        if chance.random() < 0.8:  # wait until it writes, then a little
            while process.poll() is None and (
                not run_file(tmp_path).exists() or run_file(tmp_path).stat().st_size <= size
            ):
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.03))
        else:
            time.sleep(chance.uniform(0, 1.5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        if run_file(tmp_path).exists() and chance.random() < 0.5:  # what a power cut can do to the last write
            content = run_file(tmp_path).read_bytes()
            run_file(tmp_path).write_bytes(content[: -chance.randrange(1, 400)] if len(content) > 2000 else content)
        now = len(run_file(tmp_path).read_text().splitlines()) if run_file(tmp_path).exists() else 0
        written += now > 1
        if now > len(whole):  # all done before the kills were: begin again
            shutil.rmtree(tmp_path / STORIES)
    assert written > 3
    done = run(shared, tmp_path)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path) == whole


def test_limit_and_subjects_extend_the_same_file(shared, whole, tmp_path):
    for flags in (["--limit", "1"], ["--limit", "7"], ["--subjects", "abstract_algebra"], ["--limit", "70"], []):
        done = run(shared, tmp_path, *flags)
        assert done.returncode == 0, done.stderr
    found = results(tmp_path)
    assert {key: found[key] for key in whole} == whole
    assert len(found) == len(whole) + 100


def test_what_is_done_is_not_done_again(shared, whole, tmp_path):
    assert run(shared, tmp_path, "--limit", "5").returncode == 0
    before = run_file(tmp_path).read_bytes()
    again = run(shared, tmp_path, "--limit", "5")
    assert "mmlu:" not in again.stderr  # no progress: nothing was left, and no model was loaded
    assert run_file(tmp_path).read_bytes() == before


def test_ctrl_c_ends_tidily_and_says_what_to_type(shared, whole, tmp_path):
    process = subprocess.Popen(command(shared, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not run_file(tmp_path).exists() or run_file(tmp_path).stat().st_size < 2000:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130
    assert told.count("\n") == 1
    assert "questions are saved in" in told
    assert "to go on: python -m evals.mmlu -m" in told
    again = told.partition("to go on: python ")[2].split()
    assert subprocess.run([sys.executable, *again], capture_output=True).returncode == 0
    assert results(tmp_path) == whole


@pytest.mark.parametrize("name", ["weights", "tokenizer", "config.json", "data", "--batch-tokens"])
def test_what_changed_under_a_run_is_refused_by_name(shared, tmp_path, name):
    model, data = tmp_path / STORIES, tmp_path / "data"
    shutil.copytree(shared / "checkpoints" / STORIES, model)
    data.mkdir()
    for split in ("dev", "test"):
        shutil.copy(shared / "data" / "mmlu" / f"{split}.jsonl.gz", data)
    for path in (model, data, *model.iterdir(), *data.iterdir()):
        path.chmod(0o755)
    words = command(shared, tmp_path, "--data", str(data), "--limit", "2", model=model)[3:]
    first = lm_harness.mmlu(words)
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
        words += ["--batch-tokens", "77"]
    else:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"my_note": "changed"}))
    again = lm_harness.mmlu(words)
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1
    assert f"was started with other {name}" in again.stderr or f"was started with another {name}" in again.stderr
    if name == "weights":
        assert lm_harness.mmlu([*words, "--fresh"]).returncode == 0


def test_a_full_disk_leaves_what_was_written(shared, whole, tmp_path):
    """The limit on a file's size fails like a full disk."""
    program = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY)); "
        "sys.argv = sys.argv[1:]; runpy.run_module('evals.mmlu', run_name='__main__')"
    )
    words = command(shared, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", program, *words[2:]],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert "run the same command to continue" in done.stderr
    assert 0 < len(results(tmp_path)) < len(whole)
    assert run(shared, tmp_path).returncode == 0
    assert results(tmp_path) == whole


def test_a_second_writer_is_refused(shared, tmp_path):
    process = subprocess.Popen(command(shared, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not run_file(tmp_path).exists():
        time.sleep(0.01)
    second = run(shared, tmp_path)
    process.kill()
    process.wait()
    assert second.returncode == 1
    assert "another process is writing" in second.stderr
