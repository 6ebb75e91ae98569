"""A worker's side: units that come from several threads are computed one after the other, records find their way."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from engine.runtime.errors import BareloopError
from evals.harness.workers.worker import Host, Unit, Worker


class Squares:
    """Squares numbers; what comes out is a unit late, as with generated answers."""

    def __init__(self, cache=None, wrong=None):
        self.identity = {"version": 1}
        self.wrong, self.runs, self.pulled = wrong, 0, []
        self.cache = cache

    def answer(self, units):
        self.runs += 1
        waiting = []
        for unit in units:
            self.pulled.append(unit.name)
            yield [(key, {"square": key**2}) for key in waiting]
            waiting = [key for key in unit.keys if key != self.wrong]
            if self.wrong == "bad":
                raise BareloopError("bad unit")
        yield [(key, {"square": key**2}) for key in waiting]


UNITS = [Unit(f"unit {number}", (2 * number, 2 * number + 1)) for number in range(10)]


def test_every_thread_gets_the_records_of_its_unit():
    worker, results = Worker(Squares()), {}

    def ask(unit):
        results[unit.name] = dict(pair for records in worker.answer(unit) for pair in records)

    threads = [threading.Thread(target=ask, args=(unit,)) for unit in UNITS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {unit.name: {key: {"square": key**2} for key in unit.keys} for unit in UNITS}
    assert sorted(worker.job.pulled) == sorted(unit.name for unit in UNITS)


def test_the_last_unit_ends_although_no_other_one_follows():
    worker = Worker(Squares())
    for unit in UNITS[:3]:
        assert [key for records in worker.answer(unit) for key, _ in records] == list(unit.keys)
    assert worker.job.runs == 3  # each waited for nothing
    assert list(worker.answer(Unit("nothing", ()))) == []


def test_an_error_of_the_job_reaches_those_that_wait_and_the_worker_goes_on():
    worker = Worker(Squares(wrong="bad"))
    with pytest.raises(BareloopError, match="bad unit"):
        list(worker.answer(UNITS[0]))
    worker.job.wrong = 3
    with pytest.raises(RuntimeError, match="no record came for"):
        list(worker.answer(UNITS[1]))
    assert len(list(worker.answer(UNITS[2]))) >= 1


def test_a_host_makes_the_job_that_is_named_and_keeps_what_the_last_one_loaded(monkeypatch):
    monkeypatch.setattr(pytest, "make_squares", Squares, raising=False)
    host = Host()
    assert host.begin("pytest:make_squares", {}) == {"version": 1}
    first = host._worker.job.cache
    host.begin("pytest:make_squares", {"wrong": 1})
    assert host._worker.job.cache is first
    assert [key for records in host.answer(UNITS[1]) for key, _ in records] == [2, 3]


def test_what_the_last_job_had_loaded_is_freed_before_the_next_one_begins(monkeypatch):
    made = []

    def make(cache, number):
        gc.collect()
        assert all(job() is None for job in made)
        job = Squares()
        made.append(weakref.ref(job))
        return job

    monkeypatch.setattr(pytest, "make_job", make, raising=False)
    host = Host()
    for number in range(3):
        host.begin("pytest:make_job", {"number": number})
        assert list(host.answer(UNITS[0]))
