"""Log-probabilities of prompts: those of transformers, whatever is cached, shared, interrupted or evicted."""

from __future__ import annotations

import random

import pytest
import torch

from engine import LLM, SamplingParams
from engine.decoding.scheduling import prefix_cache, prompt_logprobs
from engine.decoding.scheduling.prompt_logprobs import PromptLogprobs
from engine.decoding.scheduling.scheduler import Scheduler
from engine.runtime.errors import BareloopError, UsageError

ONE = SamplingParams(max_new_tokens=1, ignore_eos=True)
FEW = SamplingParams(max_new_tokens=5, ignore_eos=True, logprobs=1)
FAMILIES = ("llama", "mistral-window", "mamba", "rwkv")  # keys and values; in a window; recurrent states


@pytest.fixture(scope="module")
def tinies(draw_tiny):
    return {family: draw_tiny(family) for family in FAMILIES}


@pytest.fixture(scope="module")
def llm(tinies) -> LLM:
    return LLM.load(tinies["llama"].folder, device="cpu", dtype="float32")


def finish(scheduler: Scheduler) -> None:
    while scheduler.step() is not None:
        pass


def score(scheduler: Scheduler, ids: list[int], number: int = 20, **options):
    request = scheduler.submit(ids, ONE, prompt_logprobs=number, **options)
    finish(scheduler)
    return request


def check(tiny, ids: list[int], entries, number: int) -> None:
    """Compare the entries with a log-softmax in float64 of transformers' logits."""
    expected = tiny.logits(ids).log_softmax(-1)
    assert entries[0] is None and len(entries) == len(ids)
    for index, (logprob, top) in enumerate(entries[1:]):
        row = expected[index]
        assert logprob == pytest.approx(float(row[ids[index + 1]]), abs=2e-3)
        assert len(top) == number
        assert [value for _, value in top] == pytest.approx(row.topk(number).values.tolist(), abs=2e-3)
        assert [float(row[token]) for token, _ in top] == pytest.approx([value for _, value in top], abs=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_token_has_the_log_probability_of_transformers(tinies, prompt, family):
    tiny, ids = tinies[family], prompt(70)
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32")
    with Scheduler(llm, prefill_chunk=32) as scheduler:
        for number in (0, 5, 20):
            check(tiny, ids, score(scheduler, ids, number).prompt_logprobs, number)
        assert score(scheduler, ids[:1]).prompt_logprobs == [None]


def test_a_token_is_the_likeliest_if_its_log_probability_equals_the_largest(llm, prompt):
    ids = prompt(40)
    for _ in range(10):  # some of the likeliest tokens, and others
        ids += llm.generate([ids], SamplingParams(max_new_tokens=3, ignore_eos=True))[0].token_ids + prompt(2, len(ids))
    best = llm.logits(ids).argmax(-1).tolist()
    with Scheduler(llm, prefill_chunk=32) as scheduler:
        entries = score(scheduler, ids, 1).prompt_logprobs
    found = [logprob == max(value for _, value in top) for logprob, top in entries[1:]]
    assert found == [token == likeliest for token, likeliest in zip(ids[1:], best, strict=False)]
    assert 30 <= sum(found) < len(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_shared_prefixes_never_change_a_bit(tinies, family):
    """Requests at random, scored and not, that begin alike; rows are evicted, and requests cancelled."""
    llm = LLM.load(tinies[family].folder, device="cpu", dtype="bfloat16")
    chooser = random.Random(3)
    beginnings = [[chooser.randrange(2, 120) for _ in range(60)] for _ in range(2)]
    prompts = []
    for number in range(16):
        ids = chooser.choice(beginnings)[: chooser.randrange(20, 61)]
        ids = ids + [chooser.randrange(2, 120) for _ in range(chooser.randrange(1, 40))]
        prompts.append((ids, None if number % 3 == 2 else chooser.choice((0, 1, 20)), [50] if number % 4 else []))
    alone = []
    for ids, wanted, cuts in prompts:
        with Scheduler(llm, prefill_chunk=16, exact=True) as scheduler:
            request = scheduler.submit(ids, FEW, cuts, prompt_logprobs=wanted)
            alone.append(([(event.token_id, event.logprob) for event in request], request.prompt_logprobs))
    with Scheduler(llm, max_rows=4, prefill_chunk=16, exact=True) as scheduler:
        requests = []
        for number, (ids, wanted, cuts) in enumerate(prompts):
            requests.append(scheduler.submit(ids, FEW, cuts, prompt_logprobs=wanted))
            for _ in range(chooser.choice((0, 0, 3, 9))):
                scheduler.step()
            if number % 5 == 4:
                scheduler.cache.evict()
                scheduler.submit(ids, FEW, prompt_logprobs=1).cancel()
        finish(scheduler)
        found = [[(event.token_id, event.logprob) for event in request] for request in requests]
        assert [*zip(found, (request.prompt_logprobs for request in requests), strict=True)] == alone
        cached = [request.cached_tokens for request in requests if request.prompt_logprobs is not None]
        assert sum(cached) > 100


@pytest.mark.parametrize("family", FAMILIES)
def test_prefixes_of_any_length_are_shared_with_their_log_probabilities(tinies, family):
    tiny = tinies[family]
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32")
    chooser = random.Random(5)
    text = [chooser.randrange(2, 120) for _ in range(100)]
    lengths = [61, 97, 47, 61, 80, 100, 33]
    with Scheduler(llm, prefill_chunk=16, exact=False) as scheduler:
        cached = 0
        for length in lengths:
            ids = text[:length] + [chooser.randrange(2, 120) for _ in range(chooser.choice((0, 3)))]
            request = score(scheduler, ids, 3)
            check(tiny, ids, request.prompt_logprobs, 3)
            cached += request.cached_tokens
        assert cached > 100 or family == "mistral-window"


def test_four_answers_to_a_question_compute_the_question_once(llm, prompt):
    question, answers = prompt(70), [[7, 8], [9, 7, 8], [9, 7, 9], [4]]
    for exact, cached in ((True, [0, 64, 64, 64]), (False, [0, 64, 71, 69])):  # the third begins like the second
        with Scheduler(llm, prefill_chunk=16, exact=exact) as scheduler:
            requests = [scheduler.submit([*question, *answer], ONE, prompt_logprobs=1) for answer in answers]
            finish(scheduler)
            assert [request.cached_tokens for request in requests] == cached


def test_blocks_on_a_gpu_are_shared_with_their_log_probabilities(tinies, prompt, as_on_a_gpu):
    tiny, ids = tinies["llama"], prompt(90)
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32")
    for exact, cached in ((True, [0, 64, 0, 80]), (False, [0, 70, 0, 88])):
        with Scheduler(llm, prefill_chunk=16, exact=exact) as scheduler:
            found = []
            for text in ([*ids[:71], 9], [*ids[:71], 3, 4], prompt(90, 1), ids):
                found.append(score(scheduler, text, 4))
                check(tiny, text, found[-1].prompt_logprobs, 4)
                if text == prompt(90, 1):
                    score(scheduler, ids, 4)
            assert [request.cached_tokens for request in found] == cached


def test_rows_without_log_probabilities_serve_only_prompts_that_need_none(llm, prompt):
    ids = prompt(70)
    for exact in (True, False):
        with Scheduler(llm, prefill_chunk=16, exact=exact) as scheduler:
            plain = []
            for text in (ids, [*ids, 3]):
                plain.append(scheduler.submit(text, FEW))
                finish(scheduler)
            scored = [score(scheduler, ids), score(scheduler, [*ids, 3])]
            assert [request.cached_tokens for request in plain + scored] == (
                [0, 64, 0, 64] if exact else [0, 70, 0, 70]
            )
            assert [request.prompt_logprobs for request in plain] == [None, None]
            after = scheduler.submit(ids, FEW)  # keeps the scored row
            finish(scheduler)
            assert after.cached_tokens == (64 if exact else 69)
            assert score(scheduler, ids).cached_tokens == (64 if exact else 68)


def test_a_prompt_that_is_not_scored_computes_one_row_of_logits(llm, prompt, monkeypatch):
    rows, logits = [], llm.model.logits
    monkeypatch.setattr(llm.model, "logits", lambda hidden: (rows.append(len(hidden)), logits(hidden))[1])
    monkeypatch.setattr(prompt_logprobs, "LOGITS_ROWS", 12)
    with Scheduler(llm, prefill_chunk=32) as scheduler:
        scheduler.submit(prompt(70), ONE)
        finish(scheduler)
        assert rows == [1]
        rows.clear()
        score(scheduler, prompt(70))
        assert rows == [12, 12, 7, 12, 12, 8, 6, 1]


def test_kept_log_probabilities_are_bounded(llm, prompt, monkeypatch):
    monkeypatch.setattr(prefix_cache, "MAX_SCORED", 150)
    with Scheduler(llm, prefill_chunk=16) as scheduler:
        for seed in range(4):
            score(scheduler, prompt(70, seed))
            assert len(scheduler.cache) == min(seed + 1, 2)
        scheduler.submit(prompt(70, 9), ONE)
        finish(scheduler)
        assert len(scheduler.cache) == 3  # those that are not scored do not count
        assert [score(scheduler, prompt(70, seed)).cached_tokens for seed in (3, 0)] == [68, 0]


def test_a_row_that_was_interrupted_before_it_was_scored_is_scored_again(tinies, prompt, monkeypatch):
    tiny = tinies["llama"]
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32")
    for exact in (True, False):
        with Scheduler(llm, prefill_chunk=16, exact=exact) as scheduler:
            request = scheduler.submit(prompt(70), ONE, prompt_logprobs=2)
            scheduler.step()
            with monkeypatch.context() as patch:
                patch.setattr(PromptLogprobs, "extend", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    scheduler.step()
            assert (request.finish_reason, request.prompt_logprobs) == ("cancelled", None)
            again = score(scheduler, prompt(70), 2)
            assert again.cached_tokens == 16
            check(tiny, prompt(70), again.prompt_logprobs, 2)


def test_what_cannot_be_scored_is_refused(tinies, prompt):
    llm = LLM.load(tinies["llama"].folder, device="cpu", dtype="float32")
    llm.model.embed.weight.data[99] = torch.nan
    with Scheduler(llm) as scheduler:
        for number in (-1, 21, True, 1.0):
            with pytest.raises(UsageError, match=f"prompt_logprobs = {number}: use a whole number from 0 to 20"):
                scheduler.submit(prompt(5), ONE, prompt_logprobs=number)
        request = scheduler.submit([3, 99, 5], ONE, prompt_logprobs=1)
        with pytest.raises(BareloopError, match="not finite numbers, first at position 1 of 3"):
            list(request)
