"""Questions to several servers: each gets blocks of its own, nothing is lost, nothing is asked for ever."""

from __future__ import annotations

import threading

import pytest

from engine.remote.errors import RemoteError
from engine.runtime.errors import BareloopError
from evals.harness.remote import dispatch
from evals.harness.remote.dispatch import Dispatcher

BLOCKS = [[(block, question) for question in range(4)] for block in range(6)]
QUESTIONS = {question for block in BLOCKS for question in block}


def fail(server, error):
    raise AssertionError(f"{server} was given up: {error}")


def test_every_question_is_answered_once():
    dispatcher = Dispatcher(iter(BLOCKS), "ab", 3, lambda server, question: (server, question), fail)
    answers = [answer for answer, _ in dispatcher]
    assert sorted(question for _, question in answers) == sorted(QUESTIONS)
    assert list(Dispatcher(iter([[], []]), "ab", 3, fail, fail)) == []


def test_the_questions_of_a_block_go_to_one_server_until_no_block_is_left():
    both = threading.Barrier(2)  # each server answers one question at a time, and both at the same time

    def answer(server, question):
        both.wait(30)
        return server, question

    servers: dict[tuple[int, int], str] = {}
    for (server, question), _ in Dispatcher(iter(BLOCKS), "ab", 1, answer, fail):
        servers[question] = server
    by_block = [{servers[question] for question in block} for block in BLOCKS]
    assert by_block.count({"a"}) == by_block.count({"b"}) == 3


def test_the_last_block_is_shared():
    both = threading.Barrier(2)

    def answer(server, question):
        both.wait(30)
        return server

    answers = [server for server, _ in Dispatcher(iter(BLOCKS[:1]), "ab", 1, answer, fail)]
    assert sorted(answers) == ["a", "a", "b", "b"]


def test_shares_of_the_time_add_up_to_the_time(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(dispatch.time, "perf_counter", lambda: float(next(clock)))
    shares = [share for _, share in Dispatcher(iter(BLOCKS), "ab", 2, lambda *_: None, fail)]
    ticks = next(clock) - 1
    idle = ticks - sum(shares)  # between two questions of a single thread
    assert all(share > 0 for share in shares)
    assert 0 <= idle <= len(QUESTIONS)


def test_what_a_server_leaves_others_do_even_if_they_had_nothing_left_to_do():
    b_waits, by_b, given_up = threading.Event(), [], []

    def answer(server, question):
        if server == "a":
            b_waits.wait(30)
            raise RemoteError("a has stopped")
        by_b.append(question)
        if len(by_b) == len(BLOCKS[0]) - 1:
            b_waits.set()
        return question

    dispatcher = Dispatcher(iter(BLOCKS[:1]), "ab", 1, answer, lambda *args: given_up.append(args))
    assert {question for question, _ in dispatcher} == set(BLOCKS[0])
    assert [(server, str(error)) for server, error in given_up] in ([], [("a", "a has stopped")])


def test_the_error_of_the_last_server_ends_the_work():
    def answer(server, question):
        if question[0] < 2:
            return question
        raise RemoteError(f"{server} has stopped")

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
        list(Dispatcher(blocks(), "ab", 2, lambda *_: None, fail))

    def answer(*_):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        list(Dispatcher(iter(BLOCKS), "ab", 2, answer, fail))


def test_nothing_is_asked_after_the_reader_has_gone():
    asked = []

    def answer(_, question):
        asked.append(question)
        return question

    dispatcher = Dispatcher(iter(BLOCKS), "a", 1, answer, fail)
    answers = iter(dispatcher)
    next(answers)
    answers.close()
    for thread in dispatcher._threads:
        thread.join(30)
    assert len(asked) <= len(QUESTIONS)
    assert dispatcher._take(0, 0) is None
