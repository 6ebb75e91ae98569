"""--workers: the records of one process, whatever ends in between; with Ray, and with a stand-in for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from engine.checkpoints.opening import open_model
from evals import gsm8k, mmlu
from evals import run as matrix
from evals.harness.workers import driver
from evals.harness.workers.pool import RayWorker
from evals.runs.run_file import read
from tests.evals.harness.remote.programs import run
from tests.evals.harness.workers.fake_ray import FakeRay, at_random

MMLU = ("-m", "demo", "--device", "cpu", "--shots", "1", "--limit", "20")


pytestmark = pytest.mark.usefixtures("restored")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process."""
    output = tmp_path_factory.mktemp("alone")
    assert run(mmlu, *MMLU, "--output-dir", str(output)).returncode == 0
    return output


def results(output, name="mmlu_1shot_cpu_float32_none"):
    """The header and the records, without times."""
    header, records = read(output / "demo" / f"{name}.run.jsonl")
    assert all(record["times"]["real"] >= 0 for record in records.values())
    return header, {key: {**record, "times": None} for key, record in records.items()}


def lines(output):
    return (output / "demo" / "mmlu_1shot_cpu_float32_none.run.jsonl").read_text().splitlines()


def test_a_killed_worker_costs_nothing_and_no_process_stays(alone, tmp_path, monkeypatch):
    to_kill, killed = ["one"], []
    answer = RayWorker.answer

    def killed_first(worker, unit):
        with contextlib.suppress(IndexError):  # several threads come here at once
            to_kill.pop()
            killed.append(worker.pool.ray.get(worker._process.actor.__ray_call__.remote(lambda _: os.getpid())))
            os.kill(killed[0], signal.SIGKILL)
        yield from answer(worker, unit)

    monkeypatch.setattr(RayWorker, "answer", killed_first)
    monkeypatch.setenv("MARK_OF_THIS_TEST", str(tmp_path))  # inherited by all that Ray starts
    process = run(mmlu, *MMLU, "--workers", "2", "--output-dir", str(tmp_path))
    assert process.returncode == 0, process.stderr
    assert "its process has ended; another takes its place" in process.stderr
    assert "raylet" not in process.stdout
    header, records = results(tmp_path)
    assert records == results(alone)[1]
    assert len(lines(tmp_path)) == 41
    assert header["workers"] == 2
    while any(has_mark(path, tmp_path) for path in Path("/proc").glob("[0-9]*")):
        time.sleep(0.05)


def has_mark(process, mark):
    """Whether a process that still runs was started by the test."""
    try:
        return f"MARK_OF_THIS_TEST={mark}".encode() in (process / "environ").read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize("seed", range(3))
def test_records_are_those_of_one_process_although_workers_end_at_random(alone, tmp_path, monkeypatch, seed):
    ray = FakeRay(at_random(seed, 0.3)).install(monkeypatch)
    process = run(mmlu, *MMLU, "--workers", "2", "--output-dir", str(tmp_path))
    assert process.returncode == 0, process.stderr
    assert results(tmp_path)[1] == results(alone)[1]
    assert len(lines(tmp_path)) == 41
    assert ray.is_down


def test_a_run_of_one_process_is_continued_by_workers_and_a_finished_one_starts_none(alone, tmp_path, monkeypatch):
    ray = FakeRay().install(monkeypatch)
    assert run(mmlu, *MMLU[:-1], "8", "--output-dir", str(tmp_path)).returncode == 0
    assert run(mmlu, *MMLU, "--workers", "2", "--output-dir", str(tmp_path)).returncode == 0
    assert results(tmp_path)[1] == results(alone)[1]
    assert len(ray.actors) == 2
    process = run(mmlu, *MMLU, "--workers", "2", "--output-dir", str(tmp_path))
    assert process.returncode == 0
    assert "overall" in process.stdout
    assert len(ray.actors) == 2


def test_generated_answers_have_the_same_bits(tmp_path, monkeypatch):
    FakeRay(at_random(1, 0.1)).install(monkeypatch)
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"question": f"How many legs have {n} cats?", "answer": f"{n} * 4\n#### {4 * n}"} for n in range(2, 72)]
    for split in ("train", "test"):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("-m", "demo", "--device", "cpu", "--shots", "0", "--data", str(data))
    for output, more in (("alone", ()), ("workers", ("--workers", "2"))):
        process = run(gsm8k, *flags, *more, "--output-dir", str(tmp_path / output))
        assert process.returncode == 0, process.stderr
    expected, ours = (results(tmp_path / name, "gsm8k_0shot_cpu_float32_none")[1] for name in ("alone", "workers"))
    assert len(ours) == 70
    assert ours == expected


def test_evals_run_passes_the_flags_on():
    options = matrix.parser().parse_args(["--workers", "3", "--ray-address", "auto", "--mixed-devices"])
    arguments = matrix.flags(options, matrix.MatrixRun("mmlu", "demo", "none", None))
    assert arguments[arguments.index("--workers") + 1] == "3"
    assert arguments[arguments.index("--ray-address") + 1] == "auto"
    assert "--mixed-devices" in arguments


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--workers", "0"], "--workers 0: use 1 or more"),
        (["--ray-address", "auto"], "--ray-address is for workers; add --workers N"),
        (["--mixed-devices"], "--mixed-devices is for workers; add --workers N"),
        (["--workers", "2", "--device", "cuda:1"], "--device cuda:1: with --workers each worker has its own"),
        (["--workers", "2", "--url", "http://localhost:1"], "the servers of --url are the workers"),
    ],
)
def test_flags_that_do_not_fit_together_are_one_line(flags, message, monkeypatch):
    FakeRay().install(monkeypatch)
    process = run(mmlu, *flags)
    assert process.returncode == 2
    assert message in process.stderr.splitlines()[-1]


def test_too_many_workers_for_the_memory_are_refused_before_any_starts(monkeypatch, demo_folder):
    opened = open_model(demo_folder, "auto", quant="none", device=torch.device("cpu"))
    options = mmlu.parser().parse_args(["--workers", "3"])
    need = opened.nbytes + driver.PROCESS_BYTES
    monkeypatch.setattr("engine.runtime.memory.free_memory", lambda device: 3 * need)
    driver.check_memory(opened, "cpu", options)
    monkeypatch.setattr("engine.runtime.memory.free_memory", lambda device: 2 * need)
    with pytest.raises(driver.BareloopError, match=r"--workers 3: their models take .* GB .* use --workers 2, or a"):
        driver.check_memory(opened, "cpu", options)


def test_the_longest_blocks_come_first(demo_task):
    units = driver.units_to_do(demo_task, demo_task.wanted)
    lengths = [
        sum(
            len(demo_task.context_without_examples(row, None))
            for row in demo_task.questions[subject][first : first + 64]
        )
        for subject, first in (unit.place for unit in units)
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(key for unit in units for key in unit.keys) == sorted(demo_task.wanted)
    half = {key for key in demo_task.wanted if key[1] % 2}
    assert {key for unit in driver.units_to_do(demo_task, half) for key in unit.keys} == half


@pytest.fixture(scope="module")
def demo_folder():
    from engine.checkpoints.embedded import NAME

    return NAME


@pytest.fixture(scope="module")
def demo_task():
    options = mmlu.parser().parse_args(["--data", "demo"])
    return mmlu.load_task(options)
