"""Questions to several servers: each gets blocks of its own, nothing is lost, nothing is asked for ever."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from engine.remote.errors import RemoteError
from engine.runtime.errors import BareloopError
from evals.harness import dispatch
from evals.harness.dispatch import MAX_DEATHS, Dispatcher, WorkerLostError

BLOCKS = [[(block, question) for question in range(4)] for block in range(6)]
QUESTIONS = {question for block in BLOCKS for question in block}


def fail(server, error):
    raise AssertionError(f"{server} was given up: {error}")


def test_every_question_is_answered_once():
    dispatcher = Dispatcher(iter(BLOCKS), "ab", 3, lambda server, question: [(server, question)], fail)
    answers = [answer for answer, _ in dispatcher]
    assert sorted(question for _, question in answers) == sorted(QUESTIONS)
    assert list(Dispatcher(iter([[], []]), "ab", 3, fail, fail)) == []


def test_the_questions_of_a_block_go_to_one_server_until_no_block_is_left():
    both = threading.Barrier(2)  # each server answers one question at a time, and both at the same time

    def answer(server, question):
        both.wait(30)
        yield server, question

    servers: dict[tuple[int, int], str] = {}
    for (server, question), _ in Dispatcher(iter(BLOCKS), "ab", 1, answer, fail):
        servers[question] = server
    by_block = [{servers[question] for question in block} for block in BLOCKS]
    assert by_block.count({"a"}) == by_block.count({"b"}) == 3


def test_the_last_block_is_shared():
    both = threading.Barrier(2)

    def answer(server, question):
        both.wait(30)
        yield server

    answers = [server for server, _ in Dispatcher(iter(BLOCKS[:1]), "ab", 1, answer, fail)]
    assert sorted(answers) == ["a", "a", "b", "b"]


def test_shares_of_the_time_add_up_to_the_time(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(dispatch.time, "perf_counter", lambda: float(next(clock)))
    shares = [share for _, share in Dispatcher(iter(BLOCKS), "ab", 2, lambda *_: [None], fail)]
    ticks = next(clock) - 1
    idle = ticks - sum(shares)  # between an answer, its end, and the next question of a single thread
    assert all(share > 0 for share in shares)
    assert 0 <= idle <= 2 * len(QUESTIONS)


def test_what_a_server_leaves_others_do_even_if_they_had_nothing_left_to_do():
    b_waits, by_b, given_up = threading.Event(), [], []

    def answer(server, question):
        if server == "a":
            b_waits.wait(30)
            raise RemoteError("a has stopped")
        by_b.append(question)
        if len(by_b) == len(BLOCKS[0]) - 1:
            b_waits.set()
        yield question

    dispatcher = Dispatcher(iter(BLOCKS[:1]), "ab", 1, answer, lambda *args: given_up.append(args))
    assert {question for question, _ in dispatcher} == set(BLOCKS[0])
    assert [(server, str(error)) for server, error in given_up] in ([], [("a", "a has stopped")])


def test_the_error_of_the_last_server_ends_the_work():
    def answer(server, question):
        if question[0] >= 2:
            raise RemoteError(f"{server} has stopped")
        yield question

    given_up, answers = [], []
    with pytest.raises(RemoteError, match="has stopped"):
        for answer_, _ in Dispatcher(iter(BLOCKS), "ab", 2, answer, lambda server, _: given_up.append(server)):
            answers.append(answer_)
    assert set(answers) == {*BLOCKS[0], *BLOCKS[1]}
    assert len(given_up) <= 1


def test_a_question_that_cannot_be_asked_ends_the_work():
    def blocks():
        yield BLOCKS[0]
        raise BareloopError("no such template")

    with pytest.raises(BareloopError, match="no such template"):
        list(Dispatcher(blocks(), "ab", 2, lambda *_: [None], fail))

    def answer(*_):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        list(Dispatcher(iter(BLOCKS), "ab", 2, answer, fail))


def test_nothing_is_asked_after_the_reader_has_gone():
    asked = []

    def answer(_, question):
        asked.append(question)
        yield question

    dispatcher = Dispatcher(iter(BLOCKS), "a", 1, answer, fail)
    answers = iter(dispatcher)
    next(answers)
    answers.close()
    for thread in dispatcher._threads:
        thread.join(30)
    assert len(asked) <= len(QUESTIONS)
    assert dispatcher._take(0, 0) is None


def test_work_of_a_worker_that_ends_goes_back_and_is_done_once():
    lost = []

    def answer(worker, question):
        if question == (1, 2) and len(lost) < MAX_DEATHS - 1:
            lost.append(worker)
            raise WorkerLostError(f"{worker} has ended")
        yield question

    answers = [question for question, _ in Dispatcher(iter(BLOCKS), "ab", 2, answer, fail)]
    assert sorted(answers) == sorted(QUESTIONS)
    assert len(lost) == MAX_DEATHS - 1


def test_work_that_ends_every_worker_ends_the_run_and_has_nothing_beside_it():
    running: Counter[str] = Counter()
    beside = []

    def answer(worker, question):
        running[worker] += 1
        try:
            if question == (1, 2):
                beside.append(running[worker] - 1)
                raise WorkerLostError(f"{worker} has ended")
            yield question
        finally:
            running[worker] -= 1

    with pytest.raises(BareloopError, match=r"3 workers in a row ended while they computed \(1, 2\) \([ab] has ended"):
        list(Dispatcher(iter(BLOCKS), "ab", 2, answer, fail))
    assert len(beside) == MAX_DEATHS
    assert beside[1:] == [0, 0]


@pytest.mark.parametrize("has_begun", [True, False])
def test_only_ends_without_a_result_in_between_are_counted(has_begun):
    left = list(range(3 * MAX_DEATHS))

    def answer(worker, question):
        while left:
            if has_begun:
                yield left.pop()
            else:
                left.pop()
            raise WorkerLostError(f"{worker} has ended", has_begun)
        yield question

    assert [question for question, _ in Dispatcher(iter([["all"]]), "a", 1, answer, fail)][-1] == "all"


def test_a_worker_that_is_not_ready_holds_no_work_and_waits_no_longer_than_there_is_some():
    def prepare(worker, is_over):
        while worker == "b" and not is_over():
            time.sleep(0.001)

    dispatcher = Dispatcher(iter(BLOCKS), "ab", 2, lambda worker, question: [(worker, question)], fail, prepare)
    answers = [answer for answer, _ in dispatcher]
    assert {worker for worker, _ in answers} == {"a"}
    assert sorted(question for _, question in answers) == sorted(QUESTIONS)
