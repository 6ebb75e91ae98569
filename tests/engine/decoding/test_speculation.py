"""Speculative decoding: how much is drafted, and which drafts are refused. No test depends on a clock."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from engine import LLM
from engine import llm as facade
from engine.decoding.speculation import PromptLookup, Speculator
from engine.runtime.errors import BareloopError


class Reply(SimpleNamespace):
    """What is needed of a reply."""

    matcher = None
    __hash__ = object.__hash__


def made_up_run(speculator: Speculator, steps: int, token_seconds: float, is_right: bool) -> list[int]:
    """Decode one made-up reply: a step takes a second, and each drafted token more. -> numbers of drafted tokens"""
    reply = Reply(remaining=1000)
    counts = []
    for _ in range(steps):
        (draft,) = speculator.draft([reply])
        counts.append(len(draft))
        speculator.observe([draft], [len(draft) + 1 if is_right else 1], 1 + token_seconds * len(draft))
    return counts


class Always:
    """Drafts as many tokens as it is asked for."""

    def kinds(self, replies):
        return [0] * len(replies)

    def propose(self, replies, counts):
        return [[7] * count for count in counts]

    def forget(self, reply):
        pass


def test_drafting_stops_where_it_never_helps_and_returns_where_it_does():
    speculator = Speculator(Always())
    made_up_run(speculator, 50, 0.1, is_right=False)
    useless = made_up_run(speculator, 1000, 0.1, is_right=False)
    assert 0 < sum(useless) < 100  # it is tried now and then
    assert max(useless) == 1
    useful = made_up_run(speculator, 300, 0.1, is_right=True)
    assert sum(useful[100:]) > 190 * 5  # all but the steps that show how long one without drafts takes
    assert sum(made_up_run(speculator, 1000, 0.1, is_right=False)[300:]) < 100


def test_right_drafts_that_take_as_long_as_steps_are_not_worth_it():
    speculator = Speculator(Always())
    made_up_run(speculator, 1000, 1.5, is_right=True)
    assert sum(made_up_run(speculator, 1000, 1.5, is_right=True)) <= 1000 / 16  # a try now and then
    cheap = Speculator(Always())
    assert sum(made_up_run(cheap, 400, 0.05, is_right=True)[200:]) > 190 * 10


def test_no_more_tokens_are_drafted_than_a_reply_and_the_kernels_take():
    speculator = Speculator(Always())
    speculator.token_cost = 0.0
    for remaining in ([1], [2], [6], [1, 1], [4, 1, 9], [200], [200, 200], [200] * 31, [200] * 32):
        replies = [Reply(remaining=number) for number in remaining]
        for _ in range(2):  # to know how long a step takes
            speculator.draft(replies)
            speculator.observe([[]] * len(replies), [1] * len(replies), 1.0)
        counts = [len(draft) for draft in speculator.draft(replies)]
        assert all(count < number for count, number in zip(counts, remaining, strict=True))
        assert sum(counts) == min(32 - len(remaining), sum(remaining) - len(remaining))


def test_statistics_are_those_of_the_steps():
    speculator = Speculator(Always())
    for draft, gained, seconds in (([], 1, 1.0), ([], 1, 1.0), ([7, 7, 7], 3, 1.5), ([7], 1, 1.5)):
        speculator._kinds = [0]
        speculator.observe([draft], [gained], seconds)
    found = speculator.statistics
    assert (found.steps, found.tokens, found.drafted, found.right) == (4, 6, 4, 2)
    assert (found.share_right, found.tokens_per_step) == (0.5, 1.5)
    assert found.speedup == pytest.approx(6 / 5)
    assert str(found) == "50% of 4 drafted tokens right, 1.50 tokens/step, 1.20 x as fast as without drafts"
    speculator.observe([[7, 7]], [0], 1.0)  # a reply that failed
    assert found.right == 2
    assert str(Speculator(PromptLookup()).statistics) == "no drafted tokens"


def test_prompt_look_up_continues_the_longest_earlier_match():
    reply = Reply(sequence=SimpleNamespace(ids=[4, 5, 6, 7, 1, 5, 6, 8, 2]), start=9, token_ids=[4, 5, 6])
    lookup = PromptLookup()
    assert lookup.kinds([reply]) == [2]  # three tokens match
    assert lookup.propose([reply], [3]) == [[7, 1, 5]]
    reply.token_ids += [8]
    assert lookup.kinds([reply]) == [2]  # 5, 6, 8
    assert lookup.propose([reply], [9]) == [[2, 4, 5, 6, 8, 2, 4, 5, 6]]  # what repeats goes on to repeat
    reply.token_ids += [9]
    assert lookup.kinds([reply]) == [None]
    lookup.forget(reply)
    assert not lookup._texts


@pytest.mark.parametrize("family", ["mamba", "rwkv"])
def test_a_recurrent_model_is_refused_in_one_line(draw_tiny, tiny_llama, family):
    recurrent, other = draw_tiny(family).folder, tiny_llama.folder
    for name, draft in ((recurrent, "prompt"), (other, recurrent)):
        with pytest.raises(BareloopError, match=f"a {family} model cannot take back tokens.*; leave out") as caught:
            LLM.load(name, device="cpu", draft=draft)
        assert str(caught.value).startswith(str(recurrent))


def test_a_draft_model_of_another_vocabulary_is_refused_in_one_line(draw_tiny, tiny_llama, shared):
    checkpoints = shared / "checkpoints"
    pairs = [(checkpoints / "llama-tinystories-656k", checkpoints / "gpt2-capp-235k")]
    pairs += [(tiny_llama.folder, checkpoints / "gpt2-capp-235k")]
    pairs += [(tiny_llama.folder, draw_tiny("llama", vocab_size=100, eos_token_id=99).folder)]
    for name, draft in pairs:
        with pytest.raises(BareloopError, match="has another vocabulary than") as caught:
            LLM.load(name, device="cpu", draft=draft)
        assert str(caught.value).startswith(str(draft))


def test_a_wrong_name_of_a_draft_fails_before_the_model_is_loaded(tiny_llama, monkeypatch):
    monkeypatch.setattr(facade, "load_weights", lambda *_: pytest.fail("the weights are being loaded"))
    with pytest.raises(BareloopError, match=r"no such folder: \./nowhere"):
        LLM.load(tiny_llama.folder, device="cpu", draft="./nowhere")


def test_a_draft_from_the_text_reads_no_vocabulary():
    assert "tokenizer" not in LLM.load("demo", "cpu", draft="prompt").__dict__
