"""The scheduler when something fails: an allocation, a notification, a step, its thread. And its memory."""

from __future__ import annotations

import threading

import pytest
import torch

from engine import LLM, SamplingParams, kernels
from engine.cache.kv import Cache
from engine.decoding.scheduling import prefix_cache
from engine.decoding.scheduling.scheduler import Scheduler
from engine.runtime.errors import BareloopError

NO_EOS = SamplingParams(max_new_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_llama) -> LLM:
    return LLM.load(tiny_llama.folder, device="cpu", dtype="float32")


def finish(scheduler: Scheduler) -> None:
    while scheduler.step() is not None:
        pass


def tokens(request) -> list[int]:
    return [event.token_id for event in request]


@pytest.mark.parametrize("error", [BareloopError("out of memory"), MemoryError(), KeyboardInterrupt()])
def test_an_allocation_that_fails_ends_only_the_request_that_is_admitted(llm, prompt, monkeypatch, error):
    allocate, calls = Cache._allocate, []

    def failing(self, size):
        calls.append(size)
        if len(calls) == 2:
            raise error
        return allocate(self, size)

    with Scheduler(llm) as scheduler:
        requests = [scheduler.submit(prompt(9, seed), NO_EOS) for seed in range(3)]
        monkeypatch.setattr(Cache, "_allocate", failing)
        if isinstance(error, KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                scheduler.step()
        finish(scheduler)
        assert [len(request.take()) for request in requests] == [12, 0, 12]
        assert requests[1].finish_reason == ("cancelled" if isinstance(error, KeyboardInterrupt) else None)
        scheduler.cache.clear()
        assert scheduler.state.nbytes == 0


def test_a_notification_that_raises_stops_nothing(llm, prompt, caplog):
    def notify() -> None:
        raise RuntimeError("Event loop is closed")

    with Scheduler(llm) as scheduler:
        requests = [scheduler.submit(prompt(9), NO_EOS, notify=notify), scheduler.submit(prompt(9, 1), NO_EOS)]
        finish(scheduler)
        assert [len(tokens(request)) for request in requests] == [12, 12]
    assert "Event loop is closed" in caplog.text


def test_closing_in_a_notification_ends_everything_after_the_step(llm, prompt):
    scheduler = Scheduler(llm)
    request = scheduler.submit(prompt(9), NO_EOS, notify=scheduler.close)
    other = scheduler.submit(prompt(9, 1), NO_EOS)
    finish(scheduler)
    assert (request.finish_reason, other.finish_reason) == ("cancelled", "cancelled")
    assert len(request.take()) == 1
    assert scheduler.state.nbytes == 0


def test_readers_get_the_error_that_ended_the_thread(llm, prompt, monkeypatch):
    def fail(*_: object) -> None:
        raise ValueError("a bug")

    scheduler = Scheduler(llm)
    request = scheduler.submit(prompt(9), NO_EOS)
    monkeypatch.setattr(scheduler.running, "ready", fail)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            scheduler.run()
        except ValueError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    with pytest.raises(ValueError, match="a bug"):
        tokens(request)
    thread.join()
    assert len(failures) == 1
    with pytest.raises(BareloopError, match="closed"):
        scheduler.submit(prompt(3))


def test_a_scheduler_runs_in_one_thread_only(llm):
    scheduler = Scheduler(llm)
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    while scheduler._thread is None:
        pass
    with pytest.raises(BareloopError, match="runs already"):
        scheduler.run()
    scheduler.close()
    thread.join()


def test_more_rows_than_the_kernels_take_decode_in_turn(llm, prompt):
    params = SamplingParams(max_new_tokens=60, ignore_eos=True)
    prompts = [prompt(5, seed) for seed in range(40)]
    expected = [completion.token_ids for completion in llm.generate(prompts, params)]
    with Scheduler(llm, max_rows=40) as scheduler:
        requests = [scheduler.submit(ids, params) for ids in prompts]
        while len(scheduler.running.decoding) < 40:
            assert scheduler.step() is not None
        assert [len(scheduler.step().requests) for _ in range(4)] == [kernels.MAX_ROWS] * 4
        finish(scheduler)
        assert [tokens(request) for request in requests] == expected


def test_a_request_that_has_to_wait_leaves_the_cache_alone(llm, prompt):
    row = llm.model.new_state().row_bytes(32)
    with Scheduler(llm, cache_bytes=4 * row) as scheduler:
        for seed in range(2):
            scheduler.submit(prompt(20, seed), NO_EOS)
        finish(scheduler)
        scheduler.submit(prompt(40, 3), SamplingParams(max_new_tokens=24, ignore_eos=True))
        for _ in range(3):
            scheduler.step()
        scheduler.submit(prompt(90, 4), SamplingParams(max_new_tokens=30, ignore_eos=True))
        for _ in range(3):
            scheduler.step()
        assert len(scheduler.queue) == 1
        assert len(scheduler.cache) == 2
        finish(scheduler)
        assert not scheduler.queue


def test_a_finished_row_keeps_no_room_that_it_does_not_use(llm, prompt):
    long = SamplingParams(max_new_tokens=180, ignore_eos=True)
    with Scheduler(llm) as scheduler:
        first = scheduler.submit(prompt(60), long)
        for _ in range(3):
            scheduler.step()
        second = scheduler.submit([*prompt(60)[:50], 7, 8, 9], long)  # shares the segment of the first
        for _ in range(6):
            scheduler.step()
        assert second.cached_tokens == 50
        first.cancel()
        second.cancel()
        finish(scheduler)
        lengths = [len(slot.sequence.ids) for slot in scheduler.cache._slots]
        assert scheduler.state.nbytes <= scheduler.state.row_bytes(sum(lengths) - 50 + 8)


def test_the_work_for_a_prompt_does_not_grow_with_the_number_of_finished_ones(llm, prompt, monkeypatch):
    calls: list[int] = []
    compare = prefix_cache.common_prefix
    monkeypatch.setattr(prefix_cache, "common_prefix", lambda a, b: calls.append(1) or compare(a, b))
    llm.generate([prompt(20, seed) for seed in range(300)], SamplingParams(max_new_tokens=1))
    assert len(calls) < 300 * 2 * 2 * kernels.MAX_ROWS


def test_few_threads_is_only_for_the_thread_that_asks(two_threads):
    if not kernels.available():
        pytest.skip("needs the C++ kernels")
    seen: list[int] = []
    with kernels.few_threads(torch.zeros(4)):
        assert torch.get_num_threads() == 1
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert seen == [2]
    assert torch.get_num_threads() == 2


def test_rows_that_outgrow_their_window_stay_within_the_memory(draw_tiny, prompt):
    llm = LLM.load(draw_tiny("mistral-window").folder, device="cpu", dtype="float32")
    state = llm.model.new_state()
    params = SamplingParams(max_new_tokens=60, ignore_eos=True)
    with Scheduler(llm, exact=False, cache_bytes=3 * state.row_bytes(250), prefill_chunk=16) as scheduler:
        scheduler.submit(prompt(140), params)
        finish(scheduler)
        requests = [scheduler.submit([*prompt(140), 3 + number, 7], params) for number in range(12)]
        while scheduler.step() is not None:
            assert scheduler.state.nbytes <= 1.05 * scheduler.cache_bytes  # capacities are rounded up
        assert all(request.finish_reason == "length" for request in requests)


def test_a_scope_that_cannot_be_hashed_is_refused(llm, prompt):
    with Scheduler(llm) as scheduler, pytest.raises(TypeError, match="unhashable"):
        scheduler.submit(prompt(5), scope=[1])
