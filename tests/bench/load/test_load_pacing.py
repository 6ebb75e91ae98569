"""When requests are sent, in virtual time."""

from __future__ import annotations

import itertools
from random import Random

import numpy as np
import pytest

from bench.load.figures import Figures
from bench.load.pacing import Limit, arrivals, measure
from bench.load.prompts import RandomWords
from bench.load.records import Setting
from tests.bench.load.fake_server import FakeServer, in_virtual_time


def load(server: FakeServer, kind: str, value: float, limit: Limit) -> Setting:
    setting = Setting(kind, value)
    done = []

    async def work():
        async with server.client() as client:
            await measure(
                client, setting, limit, RandomWords(10), itertools.count(), seed=1, done=lambda: done.append(None)
            )

    in_virtual_time(work)
    assert len(done) == len(setting.records)
    return setting


def test_in_a_closed_loop_a_client_sends_its_next_request_when_its_last_is_answered():
    server = FakeServer(prefill=0.5, step=0.125)  # an answer takes one second
    setting = load(server, "concurrency", 3, Limit(requests=8))
    assert server.arrived == [0, 0, 0, 1, 1, 1, 2, 2] and server.most == 3
    assert setting.seconds == 3 and setting.lateness == 0
    figures = Figures.of(setting, 0.5, 0.125)
    assert figures.request_rate == figures.goodput == 8 / 3 and figures.output_rate == 40 / 3
    assert len({body["prompt"] for body in server.bodies}) == 8


def test_a_closed_loop_of_some_seconds_sends_until_then_and_waits_for_the_answers():
    server = FakeServer(prefill=0.5, step=0.125)
    setting = load(server, "concurrency", 2, Limit(seconds=2.5))
    assert server.arrived == [0, 0, 1, 1, 2, 2] and setting.seconds == 3


def test_a_failed_request_counts_as_an_error_and_its_client_goes_on():
    server = FakeServer(prefill=0.5, step=0.125, answers={1: (429, "{}"), 2: (503, "{}"), 4: (429, "{}")})
    setting = load(server, "concurrency", 1, Limit(requests=6))
    figures = Figures.of(setting, 0.5, 0.125)
    assert (figures.requests, figures.errors) == (6, {"429": 2, "503": 1})
    assert len(figures.ttft) == 3 and figures.request_rate == 1


def test_in_an_open_loop_requests_arrive_whether_the_others_are_answered_or_not():
    server = FakeServer(prefill=1000, step=0)
    setting = load(server, "rate", 2.0, Limit(requests=20))
    times = list(arrivals(2.0, 1, Limit(requests=20)))
    assert server.arrived == pytest.approx(times) and server.most == 20 and times[-1] < 1000
    assert [record.due for record in setting.records] == times
    assert setting.lateness == pytest.approx(0)
    assert [record.ttft for record in setting.records] == pytest.approx([1000] * 20)


def test_arrivals_are_a_seeded_poisson_process():
    times = list(arrivals(4.0, 0, Limit(requests=20_000)))
    gaps = np.diff([0, *times])
    assert gaps.mean() == pytest.approx(1 / 4, rel=0.02) and gaps.std() == pytest.approx(1 / 4, rel=0.03)
    counts = np.bincount(np.asarray(times).astype(int))
    assert counts.var() == pytest.approx(counts.mean(), rel=0.1)  # of a Poisson distribution
    random = Random("0 arrivals")
    assert times[:2] == [first := random.expovariate(4), first + random.expovariate(4)]
    assert list(arrivals(8.0, 0, Limit(requests=9))) == pytest.approx([time / 2 for time in times[:9]])
    assert times[:9] != list(arrivals(4.0, 1, Limit(requests=9)))
    assert list(arrivals(4.0, 0, Limit(seconds=100))) == [time for time in times if time < 100]
