"""The driver's side of workers: processes that end are replaced, and no record is lost or comes twice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from engine.runtime.errors import BareloopError, UsageError
from evals.harness.workers import actor, cluster
from evals.harness.workers.actor import Assignment
from evals.harness.workers.cluster import load_ray, threads_of_each
from evals.harness.workers.pool import Pool
from evals.harness.workers.worker import Unit
from tests.evals.harness.workers.fake_ray import FakeRay, at_random

UNITS = [Unit(f"unit {number}", tuple(range(5 * number, 5 * number + 5))) for number in range(12)]
IDENTITY = {"weights": "1"}


def job(**arguments):
    return Assignment("pytest:Doubles", arguments, IDENTITY)


class Doubles:
    """Doubles numbers, a record at a time."""

    made = 0
    gate = threading.Event()
    gate.set()

    def __init__(self, cache, error=None, kinds=("a",), weights="1", factor=2):
        type(self).made += 1
        if self.made == 2:
            self.gate.set()
        self.error, self.factor = error, factor
        self.identity = {"weights": weights, "computes on": kinds[self.made % len(kinds)]}
        if error == "begin":
            raise UsageError("no such model")

    def answer(self, units):
        for unit in units:
            assert self.gate.wait(30)
            for key in unit.keys:
                if self.error is not None:
                    raise self.error
                yield [(key, {"double": self.factor * key})]


@pytest.fixture(autouse=True)
def importable(monkeypatch, restored):
    monkeypatch.setattr(pytest, "Doubles", Doubles, raising=False)
    monkeypatch.setattr(Doubles, "made", 0)


def run_once(pool, assignment=None):
    with pool:
        return run(pool, assignment)


def run(pool, assignment=None, units=UNITS):
    pool.start()
    return [record["double"] for records in pool.run(assignment or job(), units) for record in records]


@pytest.mark.parametrize("seed", range(20))
def test_every_record_comes_once_although_workers_end_at_random(monkeypatch, seed):
    ray = FakeRay(at_random(seed, 0.2)).install(monkeypatch)
    with Pool(3, None, gpus=0, cores=6) as pool:
        assert sorted(run(pool)) == [2 * key for unit in UNITS for key in unit.keys]
    assert ray.is_down


def test_a_second_job_has_the_same_processes(monkeypatch):
    ray = FakeRay().install(monkeypatch)
    with Pool(2, None, gpus=0, cores=2) as pool:
        run(pool)
        assert sorted(run(pool, job(error=None))) == [2 * key for u in UNITS for key in u.keys]
        assert len(ray.actors) == 2
        assert pool.threads == 1


def test_workers_that_never_begin_end_the_run(monkeypatch):
    FakeRay(lambda number: True).install(monkeypatch)
    with pytest.raises(
        BareloopError, match=r"worker [12] ended 3 times before it began \(The actor died unexpectedly.\)"
    ):
        run_once(Pool(2, None, gpus=0, cores=2))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"error": "begin"}, "^no such model$"),
        ({"error": BareloopError("cannot score 7")}, "^cannot score 7$"),
        ({"error": ZeroDivisionError("division\nby zero")}, r"^worker [12]: ZeroDivisionError: division$"),
        ({"error": MemoryError()}, r"^worker [12]: out of memory$"),
    ],
)
def test_an_error_of_a_worker_is_one_line(monkeypatch, arguments, message):
    FakeRay().install(monkeypatch)
    with pytest.raises(BareloopError, match=message) as caught:
        run_once(Pool(2, None, gpus=0, cores=2), job(**arguments))
    assert isinstance(caught.value, UsageError) == (arguments["error"] == "begin")


def test_workers_on_other_devices_are_refused_unless_they_are_asked_for(monkeypatch):
    FakeRay().install(monkeypatch)
    Doubles.gate.clear()  # nothing is computed before both have begun
    mixed = job(kinds=("a", "b"))
    with pytest.raises(BareloopError, match=r"differs in computes on .*--mixed-devices"):
        run_once(Pool(2, None, gpus=0, cores=2), mixed)
    assert len(run_once(Pool(2, None, gpus=0, cores=2, mixed=True), job(kinds=("a", "b")))) == 60


def test_workers_with_another_model_than_the_run_are_refused(monkeypatch):
    FakeRay().install(monkeypatch)
    with pytest.raises(BareloopError, match=r"worker [12] differs in weights \(2, expected was 1\); give all nodes"):
        run_once(Pool(2, None, gpus=0, cores=2), job(weights="2"))


def test_threads_are_divided_so_that_all_workers_fit():
    assert threads_of_each(2, [4, 2]) == 2
    assert threads_of_each(3, [4, 2]) == 2
    assert threads_of_each(4, [4, 2]) == 1
    assert threads_of_each(9, [4, 2]) == threads_of_each(1, []) == 1
    assert threads_of_each(1, [4, 2]) == 4


def test_a_cluster_is_joined_with_its_token(monkeypatch, tmp_path):
    ray = FakeRay().install(monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(cluster.Path, "home", lambda: tmp_path)
    load_ray("host:6379")
    assert "RAY_AUTH_MODE" not in os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    load_ray("host:6379")
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    with Pool(3, "host:6379", gpus=0, cores=99) as pool:
        run(pool)
        assert ray.options["address"] == "host:6379"
        assert pool.threads == 2


def test_without_ray_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"--workers needs Ray; install it with: pip install 'bareloop\[ray\]'"):
        load_ray(None)


def test_a_worker_that_has_no_place_any_more_leaves_its_work_to_the_others(monkeypatch):
    ray = FakeRay(lambda number: number == 5, places=2).install(monkeypatch)
    dies = ray.dies

    def node_leaves(number):
        ray.places -= dies(number)
        return dies(number)

    ray.dies = node_leaves
    assert sorted(run_once(Pool(2, None, gpus=0, cores=2))) == [2 * key for unit in UNITS for key in unit.keys]
    assert len(ray.actors) in (2, 3)  # a third one waits for a place


def test_runs_that_follow_each_other_at_once_are_not_mixed_up(monkeypatch):
    ray = FakeRay(places=1).install(monkeypatch)
    with Pool(3, None, gpus=0, cores=3) as pool:
        for factor in (2, 3, 4, 5):  # two workers never begin before the run has ended
            ray.places = 1 + factor % 2
            assert sorted(run(pool, job(factor=factor), UNITS[:2])) == [factor * key for key in range(10)]
    by_worker = [begin[1] for begin in ray.begins]
    assert len(by_worker) <= 3 * 4


def test_the_user_is_told_once_that_workers_wait_for_a_place(monkeypatch):
    FakeRay(places=1).install(monkeypatch)
    monkeypatch.setattr(actor, "PATIENCE", 1)
    told = []

    class Listening(Pool):
        def tell(self, line, once=False):
            if not once or line not in told:
                told.append(line)
            Doubles.gate.set()

    Doubles.gate.clear()  # nothing is computed before somebody was told
    run_once(Listening(3, None, gpus=0, cores=3))
    assert told == ["workers wait for a place: each needs a node with 1 CPU core(s) free"]


def test_an_interrupt_starts_no_process_and_says_nothing(monkeypatch, capsys):
    ray = FakeRay().install(monkeypatch)
    with Pool(2, None, gpus=0, cores=2) as pool:
        pool.start()
        records = pool.run(job(), UNITS)
        next(records)
    records.close()
    assert ray.is_down
    assert len(ray.actors) <= 2
    assert capsys.readouterr().err == ""


def test_folders_of_killed_drivers_are_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "FOLDERS", tmp_path)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    names = [f"bareloop-ray-{process.pid}-abc", f"bareloop-ray-{os.getpid()}-abc", "bareloop-ray-x", "ray"]
    for name in names:
        (tmp_path / name).mkdir()
    cluster.remove_stale()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
