"""Sequences and the decode loop against transformers, one row at a time."""

from __future__ import annotations

import pytest
import torch

from engine import LLM, SamplingParams
from engine.decoding.loop import decode
from engine.runtime.errors import BareloopError

ENDLESS = SamplingParams(max_new_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_llama) -> LLM:
    return LLM.load(tiny_llama.folder, device="cpu", dtype="float32")


def test_three_ragged_prompts_decode_together_as_transformers_decodes_each_alone(tiny, prompt):
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32")
    prompts = [prompt(length, length) for length in (5, 23, 40)]
    for completion, ids in zip(llm.generate(prompts, ENDLESS), prompts, strict=True):
        margins = tiny.logits(ids + completion.token_ids)[len(ids) - 1 : -1].topk(2).values.diff(dim=-1).abs()
        assert margins.min() > 1e-4, "draw another seed: a tie decides this test"
        assert completion.token_ids == tiny.greedy(ids, 24)
        assert completion.finish_reason == "length"


def test_feed_reuses_the_common_prefix_and_computes_at_least_one_token(llm, prompt):
    ids = prompt(30)
    sequence = llm.sequence()
    assert sequence.feed(ids) == 0
    assert sequence.feed(ids) == 29
    assert sequence.feed([*ids[:20], 3, 4]) == 20
    assert torch.allclose(sequence.logits, llm.logits([*ids[:20], 3, 4])[-1], atol=1e-5)
    assert sequence.feed(ids[:5]) == 4
    assert sequence.ids == ids[:5]


def test_a_prompt_longer_than_a_chunk_equals_one_pass(draw_tiny, prompt, monkeypatch):
    tiny = draw_tiny("llama")
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32")
    monkeypatch.setattr("engine.decoding.loop.PREFILL_CHUNK", 16)
    ids = prompt(100)
    for last in (1, 16, 17, 100):
        logits = llm.sequence().feed_with_logits(ids, last)
        assert logits.shape == (last, 128)
        assert (logits.double() - tiny.logits(ids)[-last:]).abs().max() < 2e-5


def test_decode_can_be_abandoned_at_any_event_and_gone_on_with(llm, tiny_llama, prompt):
    ids = prompt(9)
    expected = tiny_llama.greedy(ids, 12)
    for stop_after in (1, 2, 7):
        sequence = llm.sequence()
        sequence.feed(ids)
        written = []
        for event in sequence.decode(ENDLESS):
            written.append(event.token_id)
            if len(written) == stop_after:
                break
        assert sequence.ids == ids + written[:-1]  # the last one is chosen, not yet fed
        written += [event.token_id for event in sequence.decode(ENDLESS)][1:]  # the same choice again, and on
        assert written[:12] == expected


def test_sequences_leave_as_they_finish(llm, prompt):
    prompts = [prompt(length, length) for length in (4, 9, 14)]
    alone = [llm.generate([ids], ENDLESS)[0].token_ids for ids in prompts]
    params = SamplingParams(max_new_tokens=24, ignore_eos=True, stop_token_ids=(alone[1][5],))
    together = llm.generate(prompts, params)
    assert together[1].finish_reason == "stop"
    for completion, full in zip(together, alone, strict=True):
        assert completion.token_ids == full[: len(completion.token_ids)]


def test_forked_sequences_decode_like_fresh_ones(llm, prompt):
    sequence = llm.sequence()
    sequence.feed(prompt(20))
    forks = sequence.fork(2)
    forks[0].feed([*prompt(20), 5, 6])
    events = list(decode([sequence, *forks], ENDLESS))
    for index, ids in enumerate((prompt(20), [*prompt(20), 5, 6], prompt(20))):
        written = [event.token_id for event in events if event.sequence == index]
        assert written == llm.generate([ids], ENDLESS)[0].token_ids
    held = sequence.state.nbytes
    for fork in forks:
        fork.close()
    assert sequence.state.nbytes < held


def test_end_of_sequence_stops_unless_ignored(llm, prompt):
    full = llm.generate([prompt(6)], ENDLESS)[0].token_ids
    sequence = llm.sequence()
    sequence.eos_token_ids = frozenset([full[3]])
    sequence.feed(prompt(6))
    events = list(sequence.decode(SamplingParams(max_new_tokens=24)))
    assert [event.token_id for event in events] == full[: full.index(full[3]) + 1]
    assert events[-1].finish_reason == "stop"


def test_the_window_ends_a_reply(llm, prompt):
    ids = prompt(250)
    completion = llm.generate([ids], ENDLESS)[0]
    assert len(completion.token_ids) == 256 - 250 + 1  # the last one is written, and there is no room to feed it
    assert completion.finish_reason == "length"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "at least 1 token"),
        ([1] * 257, "257 tokens.*window is 256"),
        ([1, 128], "0 to 127"),
        ([-1], "0 to 127"),
        ([1.5], "contain 1.5"),
    ],
)
def test_prompts_that_cannot_be_fed_are_refused_and_lose_nothing(llm, prompt, ids, message):
    sequence = llm.sequence()
    sequence.feed(prompt(5))
    with pytest.raises(BareloopError, match=message):
        sequence.feed(ids)
    assert sequence.ids == prompt(5)


def test_sequences_of_different_states_or_the_same_one_twice_cannot_decode_together(llm, prompt):
    a, b = llm.sequence(), llm.sequence()
    a.feed(prompt(5))
    b.feed(prompt(6))
    for together in ([a, b], [a, a]):
        with pytest.raises(BareloopError, match="distinct rows of one state"):
            next(decode(together, ENDLESS))


def test_a_closed_sequence_is_of_no_further_use(llm, prompt):
    a = llm.sequence()
    a.feed(prompt(5))
    (fork,) = a.fork(1)
    fork.close()
    fork.close()
    (other,) = a.fork(1)  # may get the same row
    for use in (lambda: fork.feed(prompt(3)), lambda: fork.fork(1), lambda: next(fork.decode(ENDLESS))):
        with pytest.raises(BareloopError):
            use()
    list(decode([other], SamplingParams(max_new_tokens=1)))
    assert other.ids == prompt(5)
    assert other.state.length(other.row) == 5


@pytest.mark.parametrize("count", [0, -5])
def test_at_least_one_token_is_asked_for(count):
    with pytest.raises(BareloopError, match="max_new_tokens"):
        SamplingParams(max_new_tokens=count)


def test_a_sequence_closed_on_the_way_leaves_the_others_alone(llm, prompt):
    state = llm.model.new_state()
    a, b = llm.sequence(state), llm.sequence(state)
    a.feed(prompt(5))
    b.feed(prompt(8, 1))
    written = []
    for event in decode([a, b], ENDLESS):
        if event.sequence == 0:
            a.close()
        else:
            written.append(event.token_id)
    assert written == llm.generate([prompt(8, 1)], ENDLESS)[0].token_ids


def test_decoding_before_feeding_is_one_line(llm):
    with pytest.raises(BareloopError, match="feed"):
        next(llm.sequence().decode(ENDLESS))
