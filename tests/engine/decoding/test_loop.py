"""Sequences and the decode loop, against transformers' float64 logits of one prompt at a time."""

from __future__ import annotations

import pytest
import torch

from engine import LLM, SamplingParams
from engine.decoding.loop import decode
from engine.runtime.errors import BareloopError

NO_EOS = SamplingParams(max_new_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_llama) -> LLM:
    return LLM.load(tiny_llama.folder, device="cpu", dtype="float32")


def test_prompts_of_different_lengths_decode_together_as_transformers_decodes_each_alone(tiny, prompt):
    llm = LLM.load(tiny.folder, device="cpu", dtype="float32")
    prompts = [prompt(length, length) for length in (5, 23, 40)]
    for completion, ids in zip(llm.generate(prompts, NO_EOS), prompts, strict=True):
        # By induction, tokens that are the argmax after their own prefix are those of greedy decoding.
        logits = tiny.logits(ids + completion.token_ids)[len(ids) - 1 : -1]
        margins = logits.topk(2).values.diff(dim=-1).abs()
        assert margins.min() > 1e-4, "a tie decides this test: use another seed"
        assert len(completion.token_ids) == 24
        assert completion.token_ids == logits.argmax(-1).tolist()
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
    monkeypatch.setattr("engine.decoding.sequence.PREFILL_CHUNK", 16)
    ids = prompt(100)
    for last in (1, 16, 17, 100):
        logits = llm.sequence().feed_with_logits(ids, last)
        assert logits.shape == (last, 128)
        assert (logits.double() - tiny.logits(ids)[-last:]).abs().max() < 2e-5


def test_decoding_can_be_abandoned_at_any_event_and_resumed(llm, tiny_llama, prompt):
    ids = prompt(9)
    expected = tiny_llama.greedy(ids, 12)
    for stop_after in (1, 2, 7):
        sequence = llm.sequence()
        sequence.feed(ids)
        generated = []
        for event in decode([sequence], NO_EOS):
            generated.append(event.token_id)
            if len(generated) == stop_after:
                break
        assert sequence.ids == ids + generated[:-1]  # the last token is chosen, but not fed yet
        generated += [event.token_id for event in decode([sequence], NO_EOS)][1:]  # the first is the same token again
        assert generated[:12] == expected


def test_a_finished_sequence_does_not_change_the_others(llm, prompt):
    prompts = [prompt(length, length) for length in (4, 9, 14)]
    alone = [llm.generate([ids], NO_EOS)[0].token_ids for ids in prompts]
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
    events = list(decode([sequence, *forks], NO_EOS))
    for index, ids in enumerate((prompt(20), [*prompt(20), 5, 6], prompt(20))):
        generated = [event.token_id for event in events if event.sequence == index]
        assert generated == llm.generate([ids], NO_EOS)[0].token_ids
    before = sequence.state.nbytes
    for fork in forks:
        fork.close()
    assert sequence.state.nbytes < before


def test_an_eos_token_ends_the_reply_unless_ignored(llm, prompt):
    full = llm.generate([prompt(6)], NO_EOS)[0].token_ids
    sequence = llm.sequence()
    sequence.eos_token_ids = frozenset([full[3]])
    sequence.feed(prompt(6))
    events = list(decode([sequence], SamplingParams(max_new_tokens=24)))
    assert [event.token_id for event in events] == full[: full.index(full[3]) + 1]
    assert events[-1].finish_reason == "stop"


def test_a_reply_ends_when_the_window_is_full(llm, prompt):
    ids = prompt(250)
    completion = llm.generate([ids], NO_EOS)[0]
    assert len(completion.token_ids) == 256 - 250 + 1  # the last token is generated, but there is no room to feed it
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
def test_an_invalid_prompt_is_refused_and_leaves_the_sequence_unchanged(llm, prompt, ids, message):
    sequence = llm.sequence()
    sequence.feed(prompt(5))
    with pytest.raises(BareloopError, match=message):
        sequence.feed(ids)
    assert sequence.ids == prompt(5)


def test_sequences_of_two_states_or_one_sequence_twice_cannot_decode_together(llm, prompt):
    a, b = llm.sequence(), llm.sequence()
    a.feed(prompt(5))
    b.feed(prompt(6))
    for sequences in ([a, b], [a, a]):
        with pytest.raises(BareloopError, match="distinct rows of one state"):
            next(decode(sequences, NO_EOS))


def test_a_closed_sequence_cannot_be_used_nor_affect_its_row(llm, prompt):
    a = llm.sequence()
    a.feed(prompt(5))
    (fork,) = a.fork(1)
    fork.close()
    fork.close()
    (other,) = a.fork(1)  # may have the row of the closed one
    for use in (lambda: fork.feed(prompt(3)), lambda: fork.fork(1), lambda: next(decode([fork], NO_EOS))):
        with pytest.raises(BareloopError):
            use()
    list(decode([other], SamplingParams(max_new_tokens=1)))
    assert other.ids == prompt(5)
    assert other.state.length(other.row) == 5


@pytest.mark.parametrize("count", [0, -5])
def test_max_new_tokens_below_one_is_refused(count):
    with pytest.raises(BareloopError, match="max_new_tokens"):
        SamplingParams(max_new_tokens=count)


def test_a_sequence_closed_while_decoding_does_not_change_the_others(llm, prompt):
    state = llm.model.new_state()
    a, b = llm.sequence(state), llm.sequence(state)
    a.feed(prompt(5))
    b.feed(prompt(8, 1))
    generated = []
    for event in decode([a, b], NO_EOS):
        if event.sequence == 0:
            a.close()
        else:
            generated.append(event.token_id)
    assert generated == llm.generate([prompt(8, 1)], NO_EOS)[0].token_ids


def test_decoding_before_feeding_is_refused(llm):
    with pytest.raises(BareloopError, match="feed"):
        next(decode([llm.sequence()], NO_EOS))
