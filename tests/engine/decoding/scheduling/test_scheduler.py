"""The scheduler: a request's tokens depend on nothing but the request, nothing leaks, and nobody waits for long."""

from __future__ import annotations

import random
import threading
import time
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import LLM, SamplingParams
from engine.decoding.scheduling import running
from engine.decoding.scheduling.request import QueueFullError
from engine.decoding.scheduling.scheduler import Scheduler
from engine.runtime.errors import BareloopError

NO_EOS = SamplingParams(max_new_tokens=12, ignore_eos=True)
FAMILIES = ("llama", "mistral-window", "mamba", "rwkv")  # keys and values; in a window; recurrent states


@pytest.fixture(scope="module")
def llm(tiny_llama) -> LLM:
    return LLM.load(tiny_llama.folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def models(draw_tiny) -> dict[str, LLM]:
    return {name: LLM.load(draw_tiny(name).folder, device="cpu", dtype="float32") for name in FAMILIES}


def tokens(request) -> list[int]:
    return [event.token_id for event in request]


def finish(scheduler: Scheduler) -> list:
    """Step until there is nothing to do; the work of each step."""
    done = []
    while (work := scheduler.step()) is not None:
        done.append(work)
    return done


def is_empty(scheduler: Scheduler) -> bool:
    """Whether nothing is left of the requests, once the finished rows are released."""
    scheduler.cache.clear()
    rows = [*getattr(scheduler.state, "_rows", ())]
    rows += [row for cache in getattr(scheduler.state, "caches", ()) for row in cache._rows]
    return not scheduler.running and not scheduler.queue and not rows and scheduler.state.nbytes == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_each_of_40_requests_arriving_at_random_has_its_tokens_as_alone_in_bfloat16(draw_tiny, family):
    """Greedy and sampled; some begin alike, so that they share what is cached."""
    tiny = draw_tiny(family)
    llm = LLM.load(tiny.folder, device="cpu", dtype="bfloat16")
    chooser = random.Random(3)
    beginnings = [[chooser.randrange(2, 120) for _ in range(50)] for _ in range(3)]
    requests = []
    for number in range(40):
        ids = [*chooser.choice(beginnings)[: chooser.randrange(50)]]
        ids += [chooser.randrange(2, 120) for _ in range(chooser.randrange(1, 90))]
        greedy = {} if number % 2 else {"temperature": 0.9, "top_p": 0.95, "seed": number}
        requests.append((ids, SamplingParams(max_new_tokens=chooser.randrange(1, 40), ignore_eos=True, **greedy)))
    alone = []
    for ids, params in requests:
        with Scheduler(llm, prefill_chunk=16) as scheduler:
            alone.append(tokens(scheduler.submit(ids, params)))
    with Scheduler(llm, prefill_chunk=16) as scheduler:
        submitted = []
        for ids, params in requests:
            submitted.append(scheduler.submit(ids, params))
            for _ in range(chooser.choice((0, 0, 1, 5))):
                scheduler.step()
        finish(scheduler)
        assert [tokens(request) for request in submitted] == alone
        assert sum(request.cached_tokens for request in submitted) > 100
        assert is_empty(scheduler)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cached_prefix_of_any_length_never_changes_a_text_in_float32(draw_tiny, family):
    tiny = draw_tiny(family)
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32")
    chooser = random.Random(5)
    with Scheduler(llm, prefill_chunk=16) as scheduler:
        conversation: list[int] = [chooser.randrange(2, 120) for _ in range(30)]
        for _ in range(5):
            request = scheduler.submit(conversation, NO_EOS)
            reply = tokens(request)
            assert len(reply) == 12 and reply == tiny.choices(conversation, reply)
            conversation += [*reply, *(chooser.randrange(2, 120) for _ in range(9))]
        assert request.usage.prompt_tokens == len(conversation) - 21
        assert request.cached_tokens > 0 or family == "mistral-window"
        if family == "llama":
            assert (
                request.cached_tokens == request.usage.prompt_tokens - 10
            )  # all but the new message and the last token


def test_prompts_that_begin_alike_are_computed_once(llm, prompt):
    shared = prompt(64)
    with Scheduler(llm, prefill_chunk=16, exact=True) as scheduler:
        requests = [scheduler.submit([*shared, *prompt(20, seed)], NO_EOS) for seed in range(6)]
        work = finish(scheduler)
        assert [request.cached_tokens for request in requests] == [0, 64, 64, 64, 64, 64]
        assert sum(step.tokens for step in work if step.kind == "prefill") == 64 + 6 * 20
        again = scheduler.submit([*shared, *prompt(20, 3)], NO_EOS)
        assert tokens(again) == tokens(requests[3])
        assert again.usage == type(again.usage)(84, 12, 80)


def test_prompts_of_another_scope_share_nothing(llm, prompt):
    with Scheduler(llm, prefill_chunk=16) as scheduler:
        for scope, cached in (("a", 0), ("b", 0), ("a", 63), (None, 0)):
            request = scheduler.submit(prompt(64), NO_EOS, scope=scope)
            finish(scheduler)
            assert request.cached_tokens == cached


def test_a_long_prompt_delays_the_others_by_one_piece_at_most(llm, prompt):
    with Scheduler(llm, prefill_chunk=16) as scheduler:
        short = [scheduler.submit(prompt(5, seed), NO_EOS) for seed in range(3)]
        for _ in range(6):
            scheduler.step()
        long = scheduler.submit(prompt(200), NO_EOS)
        work = finish(scheduler)
        assert max(step.tokens for step in work if step.kind == "prefill") == 16
        kinds = "".join(
            step.kind[0] for step in work[: max(i for i, step in enumerate(work) if short[0] in step.requests)]
        )
        assert "pp" not in kinds
        assert long.finish_reason == "length"


def test_prompts_are_prefilled_in_turn(llm, prompt):
    with Scheduler(llm, prefill_chunk=16) as scheduler:
        requests = [scheduler.submit(prompt(64, seed), NO_EOS) for seed in range(4)]
        pieces = [requests.index(step.requests[0]) for step in finish(scheduler) if step.kind == "prefill"]
        assert pieces == [0, 1, 2, 3] * 4
        assert all(a.first_token < b.first_token for a, b in pairwise(requests))


def test_a_request_waits_until_its_whole_reply_fits_into_memory(llm, prompt):
    row = llm.model.new_state().row_bytes(32)
    with Scheduler(llm, cache_bytes=2 * row) as scheduler:
        requests = [scheduler.submit(prompt(20, seed), NO_EOS) for seed in range(5)]
        largest = 0
        while scheduler.step() is not None:
            assert scheduler.state.nbytes <= scheduler.cache_bytes
            largest = max(largest, len(scheduler.running))
        assert largest == 2
        assert [request.finish_reason for request in requests] == ["length"] * 5
        with pytest.raises(BareloopError, match=r"20 \+ 100 tokens need .* GB of cache, and there are"):
            scheduler.submit(prompt(20), SamplingParams(max_new_tokens=100))


def test_a_full_queue_refuses_requests(llm, prompt):
    with Scheduler(llm, max_rows=1, max_queue=2) as scheduler:
        for _ in range(2):
            scheduler.submit(prompt(5), NO_EOS)
        with pytest.raises(QueueFullError, match="2 requests are waiting"):
            scheduler.submit(prompt(5), NO_EOS)
        finish(scheduler)
        scheduler.submit(prompt(5), NO_EOS)


def test_a_failed_request_does_not_end_the_others(llm, prompt, monkeypatch):
    expected = llm.generate([prompt(7, 1)], NO_EOS)[0].token_ids
    with Scheduler(llm) as scheduler:
        good, bad = scheduler.submit(prompt(7, 1), NO_EOS), scheduler.submit([3, 99, 5], NO_EOS)
        model_prefill = running.prefill

        def prefill(sequences, texts, *rest, **named):
            if 99 in texts[0]:
                raise MemoryError
            return model_prefill(sequences, texts, *rest, **named)

        monkeypatch.setattr(running, "prefill", prefill)
        finish(scheduler)
        with pytest.raises(MemoryError):
            tokens(bad)
        assert tokens(good) == expected
        assert is_empty(scheduler)


def test_logits_that_are_not_finite_end_only_their_own_request(tiny_llama, prompt):
    llm = LLM.load(tiny_llama.folder, device="cpu", dtype="float32")
    llm.model.embed.weight.data[99] = torch.nan
    with Scheduler(llm) as scheduler:
        good, bad = scheduler.submit(prompt(7, 1), NO_EOS), scheduler.submit([3, 99, 5], NO_EOS)
        finish(scheduler)
        with pytest.raises(BareloopError, match="not finite numbers, first at position 1 of 3"):
            tokens(bad)
        assert len(tokens(good)) == 12
        assert is_empty(scheduler)


def test_a_thread_of_its_own_serves_readers_in_other_threads(llm, prompt):
    expected = [llm.generate([prompt(9, seed)], NO_EOS)[0].token_ids for seed in range(8)]
    scheduler = Scheduler(llm)
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    found: dict[int, list[int]] = {}
    notified = threading.Event()

    def read(seed: int) -> None:
        found[seed] = tokens(scheduler.submit(prompt(9, seed), NO_EOS, notify=notified.set))

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [found[seed] for seed in range(8)] == expected
    assert notified.is_set()
    with pytest.raises(BareloopError, match="another thread"):
        scheduler.step()
    unread = scheduler.submit(prompt(9), SamplingParams(max_new_tokens=200, ignore_eos=True), max_unread=4)
    while len(unread._unread) < 4:
        time.sleep(0.001)
    scheduler.close()
    thread.join()
    assert unread.finish_reason == "cancelled"
    assert is_empty(scheduler)
    with pytest.raises(BareloopError, match="closed"):
        scheduler.submit(prompt(3))


def test_a_slow_reader_pauses_only_itself(llm, prompt):
    with Scheduler(llm) as scheduler:
        slow = scheduler.submit(prompt(9), NO_EOS, max_unread=3)
        fast = scheduler.submit(prompt(9, 1), NO_EOS)
        finish(scheduler)
        assert (slow.completion_tokens, fast.completion_tokens) == (3, 12)
        assert slow.finish_reason is None
        assert tokens(slow) == llm.generate([prompt(9)], NO_EOS)[0].token_ids


def test_an_interrupt_cancels_and_leaves_the_scheduler_usable(llm, prompt, monkeypatch):
    with Scheduler(llm) as scheduler:
        request = scheduler.submit(prompt(40), NO_EOS)
        for _ in range(4):
            scheduler.step()
        with monkeypatch.context() as patch:
            patch.setattr(llm.model, "logits", lambda hidden: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                scheduler.step()
        assert request.finish_reason == "cancelled"
        again = scheduler.submit(prompt(40), NO_EOS)
        assert tokens(again) == llm.generate([prompt(40)], NO_EOS)[0].token_ids
        assert again.cached_tokens == 39


def test_times_add_up(llm, prompt):
    with Scheduler(llm, max_rows=1) as scheduler:
        first, second = (scheduler.submit(prompt(9, seed), NO_EOS) for seed in range(2))
        finish(scheduler)
        for request in (first, second):
            parts = request.queue_seconds + request.prefill_seconds + request.decode_seconds
            assert parts == pytest.approx(request.finished - request.submitted)
        assert second.queue_seconds >= first.prefill_seconds + first.decode_seconds


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "cancel", "step", "step", "steps", "evict", "read"]), st.integers(0, 999)
    ),
    max_size=60,
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=45)
@given(operations=OPERATIONS)
def test_random_operations_leave_no_row_and_no_byte(family, operations, models):
    """About 10,000 operations over all families: requests, cancelling at any event, steps, evictions."""
    llm = models[family]
    state = llm.model.new_state()
    with Scheduler(llm, max_rows=3, prefill_chunk=16, cache_bytes=3 * state.row_bytes(90) + 9_000) as scheduler:
        requests = []
        for operation, number in operations:
            chooser = random.Random(number)
            match operation:
                case "submit":
                    ids = [chooser.randrange(2, 5) for _ in range(chooser.randrange(1, 70))]
                    params = SamplingParams(max_new_tokens=1 + number % 20, stop_token_ids=[number % 128])
                    options = {"max_unread": number % 7 + 1, "prompt_logprobs": 1 if number % 3 == 0 else None}
                    requests.append(scheduler.submit(ids, params, **options))
                case "cancel" if requests:
                    requests[number % len(requests)].cancel()
                case "step":
                    scheduler.step()
                case "steps":
                    for _ in range(number % 9):
                        scheduler.step()
                case "evict":
                    scheduler.cache.evict()
                case "read" if requests:
                    requests[number % len(requests)].take()
            assert len(scheduler.running) <= 3
        while scheduler.step() is not None or any(request.take() for request in requests):
            pass
        assert all(request.is_finished for request in requests)
        assert is_empty(scheduler)
