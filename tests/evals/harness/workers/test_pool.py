"""The driver's side of workers: processes that end are replaced, and no record is lost or comes twice."""

from __future__ import annotations

import os
import sys

import pytest

from engine.runtime.errors import BareloopError, UsageError
from evals.harness.workers import pool as pools
from evals.harness.workers.pool import Assignment, Pool, load_ray, threads_of_each
from evals.harness.workers.worker import Unit
from tests.evals.harness.workers.fake_ray import FakeRay, at_random

UNITS = [Unit(f"unit {number}", tuple(range(5 * number, 5 * number + 5))) for number in range(12)]
JOB = Assignment("pytest:Doubles", {})


class Doubles:
    """Doubles numbers, a record at a time."""

    made = 0

    def __init__(self, cache, error=None, kinds=("a",)):
        type(self).made += 1
        self.error = error
        self.identity = {"weights": "1", "computes on": kinds[self.made % len(kinds)]}
        if error == "begin":
            raise UsageError("no such model")

    def answer(self, units):
        for unit in units:
            for key in unit.keys:
                if self.error is not None:
                    raise self.error
                yield [(key, {"double": 2 * key})]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setattr(pytest, "Doubles", Doubles, raising=False)
    monkeypatch.setattr(Doubles, "made", 0)
    environment = {**os.environ}
    yield
    os.environ.clear()
    os.environ.update(environment)


def run_once(pool, job=JOB):
    with pool:
        return run(pool, job)


def run(pool, job=JOB, units=UNITS):
    pool.start()
    return [record["double"] for records in pool.run(job, units) for record in records]


@pytest.mark.parametrize("seed", range(20))
def test_every_record_comes_once_although_workers_end_at_random(monkeypatch, seed):
    ray = FakeRay(at_random(seed, 0.1)).install(monkeypatch)
    with Pool(3, None, gpus=0, cores=6) as pool:
        assert sorted(run(pool)) == [2 * key for unit in UNITS for key in unit.keys]
        assert len(ray.actors) > 3
    assert ray.is_down


def test_a_second_job_has_the_same_processes(monkeypatch):
    ray = FakeRay().install(monkeypatch)
    with Pool(2, None, gpus=0, cores=2) as pool:
        run(pool)
        assert sorted(run(pool, Assignment(JOB.job, {"error": None}))) == [2 * key for u in UNITS for key in u.keys]
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
        run_once(Pool(2, None, gpus=0, cores=2), Assignment(JOB.job, arguments))
    assert isinstance(caught.value, UsageError) == (arguments["error"] == "begin")


def test_workers_on_other_devices_are_refused_unless_they_are_asked_for(monkeypatch):
    FakeRay().install(monkeypatch)
    job = Assignment(JOB.job, {"kinds": ("a", "b")})
    with pytest.raises(BareloopError, match=r"differs from the first in computes on .*--mixed-devices"):
        run_once(Pool(2, None, gpus=0, cores=2), job)
    assert len(run_once(Pool(2, None, gpus=0, cores=2, mixed=True), job)) == 60


def test_threads_are_divided_so_that_all_workers_fit():
    assert threads_of_each(2, [4, 2]) == 2
    assert threads_of_each(3, [4, 2]) == 2
    assert threads_of_each(4, [4, 2]) == 1
    assert threads_of_each(9, [4, 2]) == threads_of_each(1, []) == 1
    assert threads_of_each(1, [4, 2]) == 4


def test_a_cluster_is_joined_with_its_token(monkeypatch, tmp_path):
    ray = FakeRay().install(monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(pools.Path, "home", lambda: tmp_path)
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
