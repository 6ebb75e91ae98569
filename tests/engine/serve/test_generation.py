"""From the scheduler's thread to asyncio: requests that are cancelled during submission, or lose their engine."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from engine import SamplingParams
from engine.decoding.scheduling.request import ClosedError
from engine.decoding.scheduling.scheduler import Scheduler
from engine.serve.exceptions import translate
from engine.serve.generation import MAX_TAKEN, Generation
from engine.serve.protocol.errors import ApiError


def test_a_request_that_is_submitted_after_its_client_has_left_is_cancelled():
    may_end, is_cancelled = threading.Event(), threading.Event()

    def submit():
        assert may_end.wait(60)
        return SimpleNamespace(cancel=is_cancelled.set)

    async def leave():
        starting = asyncio.ensure_future(Generation().start(submit))
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        may_end.set()
        await asyncio.to_thread(is_cancelled.wait, 60)

    asyncio.run(leave())
    assert is_cancelled.is_set()


def test_the_end_of_the_loop_during_a_submission_is_no_error():
    problems, may_end = [], threading.Event()

    async def leave():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        starting = asyncio.ensure_future(Generation().start(lambda: may_end.wait(60)))
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:  # as asyncio.run does in the end
            task.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await asyncio.sleep(0)
        may_end.set()

    asyncio.run(leave())
    assert not problems


def test_a_reply_whose_engine_ends_is_no_complete_reply(llm):
    scheduler = Scheduler(llm)

    async def read():
        generation = Generation()
        await generation.start(lambda: scheduler.submit([5, 6], SamplingParams(max_new_tokens=9), max_unread=64))
        scheduler.step()
        scheduler.close()
        return [event async for events in generation for event in events]

    with pytest.raises(ApiError, match="ended") as raised:
        asyncio.run(read())
    assert raised.value.status == 503


def test_a_closed_scheduler_is_no_fault_of_the_client(llm):
    scheduler = Scheduler(llm)
    scheduler.close()
    with pytest.raises(ClosedError) as raised:
        scheduler.submit([5])
    assert translate(raised.value).status == 503


def test_a_long_backlog_is_read_in_turns_with_others():
    async def read() -> list[str]:
        order = []

        async def follow(name):
            generation = Generation()
            generation.request = FakeRequest(20)
            async for events in generation:
                order.append(name)
                assert len(events) <= MAX_TAKEN

        await asyncio.gather(follow("a"), follow("b"))
        return order

    assert asyncio.run(read()) == ["a", "b"] * 3


class FakeRequest:
    """A request that has ended, with unread events."""

    is_finished, is_cancelled, error, finish_reason = True, False, None, "stop"

    def __init__(self, count):
        self.unread = list(range(count))

    def take(self, count):
        taken, self.unread = self.unread[:count], self.unread[count:]
        return taken
