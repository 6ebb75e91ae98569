"""Scores that share work, against whole passes of an independent reference; and plans that stay the same."""

from __future__ import annotations

import random
from itertools import groupby

import pytest
import torch

from engine import LLM
from engine.decoding.scoring import GROUP_COST, plan
from engine.runtime.errors import BareloopError

LETTERS = [[4], [5], [6], [7]]


def few_shot(prompt, questions: int = 6, shots: int = 150) -> list[tuple[list[int], list[int]]]:
    """One prefix, questions of different lengths after it, four letters each."""
    prefix = prompt(shots, 100)
    contexts = [prefix + prompt(5 + 3 * number, number) for number in range(questions)]
    return [(context, letter) for context in contexts for letter in LETTERS]


def questions(requests) -> list[list[tuple[list[int], list[int]]]]:
    return [list(group) for _, group in groupby(requests, key=lambda pair: pair[0])]


def mixed(prompt) -> list[tuple[list[int], list[int]]]:
    """All that can meet in one call: shots, long answers, answers inside answers, what is too long, twins."""
    context = prompt(20, 50)
    answers = [[8], [8, 9], [8, 9, 10], [11, 12], [11, 13, 14], prompt(30, 51)]
    long = prompt(400, 52)
    return [
        *few_shot(prompt),
        *((context, answer) for answer in answers),
        *((long, answer) for answer in ([4], [5], [6, 7], [6, 8])),
        *((long[3:], letter) for letter in LETTERS),
        *few_shot(prompt, 2),
        (context, [8, 9]),
        (prompt(1), [3]),
        (prompt(3, 1), prompt(256, 53)),
    ]


def reference(tiny, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """One whole pass in float64, the last 257 tokens of the pair."""
    ids = [*context, *continuation][-257:]
    logits = tiny.logits(ids[:-1])[-len(continuation) :]
    target = torch.tensor(continuation)
    return float(logits.log_softmax(-1).gather(1, target[:, None]).sum()), bool((logits.argmax(-1) == target).all())


@pytest.mark.parametrize("batch_tokens", [9, 100_000])
def test_scores_equal_whole_passes_whatever_is_shared(tiny, prompt, batch_tokens):
    llm = LLM.load(tiny.folder, device="cpu")
    requests = mixed(prompt)
    expected = [reference(tiny, *request) for request in requests]
    for score, (loglikelihood, greedy) in zip(llm.score(requests, batch_tokens), expected, strict=True):
        assert score.loglikelihood == pytest.approx(loglikelihood, abs=10 * tiny.tolerance)
        assert score.is_greedy == greedy


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_batch_gives_the_same_bits_after_others_and_alone(tiny_llama, prompt, dtype):
    llm = LLM.load(tiny_llama.folder, device="cpu", dtype=dtype)
    scorer = llm.scorer(60)
    batches = scorer.plan(questions(mixed(prompt)))
    in_order = [scorer.score(batch) for batch in batches]
    assert len(in_order) > 5
    for place in random.Random(0).sample(range(len(in_order)), len(in_order)):
        assert scorer.score(batches[place]) == in_order[place]
        assert llm.scorer(60).score(batches[place]) == in_order[place]


def test_a_prefix_is_computed_once_and_four_letters_take_one_row(tiny_llama, prompt):
    llm = LLM.load(tiny_llama.folder, device="cpu")
    fed = []
    forward = llm.model.forward
    llm.model.forward = lambda step, *rest, **more: fed.append(len(step.tokens)) or forward(step, *rest, **more)
    requests = few_shot(prompt)
    llm.score(requests, batch_tokens=30)
    assert sum(fed) == 150 + sum(len(context) - 150 for context, _ in requests[::4])
    assert fed[0] == 30 and fed[4] == 30  # the prefix in pieces of the budget
    assert max(fed) <= 30


def test_a_truncated_prompt_leaves_the_group_as_it_is(prompt):
    requests = few_shot(prompt)
    alone = plan(questions(requests), 256, 1000)
    prefix = requests[0][0][:150]
    long = prefix + prompt(200, 9)
    among = plan(questions([*requests[:8], *((long, letter) for letter in LETTERS), *requests[8:]]), 256, 1000)
    assert [len(batch.prefix) for batch in alone] == [150]
    assert [len(batch.prefix) for batch in among] == [150, 0]
    assert [own.stems for own in among[0].prompts] == [own.stems for own in alone[0].prompts]
    assert [own.truncated for own in among[1].prompts] == [True]
    assert among[1].prompts[0].stems[0].ids == long[-256:]


def test_groups_are_those_that_save_most(prompt):
    subjects = [prompt(300, seed) for seed in range(3)]
    requests = [
        ([1, 2, 3, *shots, *prompt(9, 10 * number + seed)], [4])
        for number in range(1, 5)
        for seed, shots in enumerate(subjects)
    ]
    batches = plan(questions(requests), 1000, 1000)
    assert [len(batch.prefix) for batch in batches] == [303, 303, 303]
    assert [[own.index for own in batch.prompts] for batch in batches] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    few = plan([[([*prompt(GROUP_COST - 5, 1), *prompt(9, seed)], [4])] for seed in (2, 3)], 1000, 1000)
    assert [len(batch.prefix) for batch in few] == [0]  # a pass over the weights for so little is no gain


def test_batches_hold_what_the_budget_allows(prompt):
    requests = few_shot(prompt, questions=30)
    for budget in (1, 40, 200):
        batches = plan(questions(requests), 10_000, budget)
        assert sorted(own.index for batch in batches for own in batch.prompts) == list(range(30))
        assert all(batch.tokens <= budget or len(batch.prompts) == 1 for batch in batches)


def test_memory_is_given_back(tiny_llama, prompt):
    llm = LLM.load(tiny_llama.folder, device="cpu")
    scorer = llm.scorer(30)
    held = set()
    for batch in scorer.plan(questions(few_shot(prompt))):
        scorer.score(batch)
        held.add(scorer.prefix.state.nbytes)
    assert len(held) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_packing_changes_no_bit(shared, tiny_llama, prompt, dtype):
    folder = shared / "checkpoints" / "llama-tinystories-656k"
    for name in (tiny_llama.folder, folder):
        plain, packed = (LLM.load(name, device="cpu", dtype=dtype) for _ in range(2))
        packed.pack()
        assert packed.score(mixed(prompt)) == plain.score(mixed(prompt))
        assert torch.equal(packed.logits(prompt(40)), plain.logits(prompt(40)))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_scores_equal_whole_passes(tiny, prompt):
    llm = LLM.load(tiny.folder, device="cuda", dtype="float32")
    requests = mixed(prompt)
    expected = [reference(tiny, *request) for request in requests]
    for score, (loglikelihood, greedy) in zip(llm.score(requests, 100), expected, strict=True):
        assert score.loglikelihood == pytest.approx(loglikelihood, abs=1e-3)
        assert score.is_greedy == greedy


def test_what_cannot_be_scored(tiny_llama):
    llm = LLM.load(tiny_llama.folder, device="cpu")
    assert llm.score([]) == []
    for request, message in (([], [1]), "at least 1"), (([1], [128]), "0 to 127"), (([1], [1] * 257), "1 to 256"):
        with pytest.raises(BareloopError, match=message):
            llm.score([request])
    with pytest.raises(BareloopError, match="batch_tokens is -1"):
        llm.score([([1], [2])], -1)
