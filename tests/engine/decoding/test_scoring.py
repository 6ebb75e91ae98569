"""Scores with shared prefixes, against a full forward pass of transformers per request; and the plans of batches."""

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
    """Questions of different lengths after one prefix, each with four letters as continuations."""
    prefix = prompt(shots, 100)
    contexts = [prefix + prompt(5 + 3 * number, number) for number in range(questions)]
    return [(context, letter) for context in contexts for letter in LETTERS]


def questions(requests) -> list[list[tuple[list[int], list[int]]]]:
    """The requests, grouped by context."""
    return [list(group) for _, group in groupby(requests, key=lambda pair: pair[0])]


def mixed(prompt) -> list[tuple[list[int], list[int]]]:
    """All kinds of requests in one call: few-shot, long, prefixes of each other, too long for the window, repeated."""
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
    """The score by one full pass in float64 over the last 257 tokens of the request."""
    ids = [*context, *continuation][-257:]
    logits = tiny.logits(ids[:-1])[-len(continuation) :]
    target = torch.tensor(continuation)
    return float(logits.log_softmax(-1).gather(1, target[:, None]).sum()), bool((logits.argmax(-1) == target).all())


@pytest.mark.parametrize("batch_tokens", [9, 100_000])
def test_scores_equal_full_passes_whatever_is_shared(tiny, prompt, batch_tokens):
    llm = LLM.load(tiny.folder, device="cpu")
    requests = mixed(prompt)
    expected = [reference(tiny, *request) for request in requests]
    for score, (loglikelihood, greedy) in zip(llm.score(requests, batch_tokens), expected, strict=True):
        assert score.loglikelihood == pytest.approx(loglikelihood, abs=10 * tiny.tolerance)
        assert score.is_greedy == greedy


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_batch_gives_the_same_bits_alone_and_after_others(tiny_llama, prompt, dtype):
    llm = LLM.load(tiny_llama.folder, device="cpu", dtype=dtype)
    scorer = llm.scorer(60)
    batches = scorer.plan(questions(mixed(prompt)))
    in_order = [scorer.score(batch) for batch in batches]
    assert len(in_order) > 5
    for index in random.Random(0).sample(range(len(in_order)), len(in_order)):
        assert scorer.score(batches[index]) == in_order[index]
        assert llm.scorer(60).score(batches[index]) == in_order[index]


def test_a_prefix_is_computed_once_and_four_letters_share_one_row(tiny_llama, prompt):
    llm = LLM.load(tiny_llama.folder, device="cpu")
    sizes = []  # tokens of each forward pass
    forward = llm.model.forward
    llm.model.forward = lambda step, *args, **kwargs: sizes.append(len(step.tokens)) or forward(step, *args, **kwargs)
    requests = few_shot(prompt)
    llm.score(requests, batch_tokens=30)
    assert sum(sizes) == 150 + sum(len(context) - 150 for context, _ in requests[::4])
    assert sizes[0] == 30 and sizes[4] == 30  # the prefix, in chunks of the budget
    assert max(sizes) <= 30


def test_a_truncated_prompt_does_not_change_its_group(prompt):
    requests = few_shot(prompt)
    alone = plan(questions(requests), 256, 1000)
    prefix = requests[0][0][:150]
    long = prefix + prompt(200, 9)
    mixed_in = plan(questions([*requests[:8], *((long, letter) for letter in LETTERS), *requests[8:]]), 256, 1000)
    assert [len(batch.prefix) for batch in alone] == [150]
    assert [len(batch.prefix) for batch in mixed_in] == [150, 0]
    assert [item.stems for item in mixed_in[0].prompts] == [item.stems for item in alone[0].prompts]
    assert [item.truncated for item in mixed_in[1].prompts] == [True]
    assert mixed_in[1].prompts[0].stems[0].ids == long[-256:]


def test_prompts_are_grouped_to_save_the_most_tokens(prompt):
    subjects = [prompt(300, seed) for seed in range(3)]
    requests = [
        ([1, 2, 3, *shots, *prompt(9, 10 * number + seed)], [4])
        for number in range(1, 5)
        for seed, shots in enumerate(subjects)
    ]
    batches = plan(questions(requests), 1000, 1000)
    assert [len(batch.prefix) for batch in batches] == [303, 303, 303]
    assert [[item.index for item in batch.prompts] for batch in batches] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    short = plan([[([*prompt(GROUP_COST - 5, 1), *prompt(9, seed)], [4])] for seed in (2, 3)], 1000, 1000)
    assert [len(batch.prefix) for batch in short] == [0]  # a pass over the weights would cost more than it saves


def test_batches_stay_within_the_budget(prompt):
    requests = few_shot(prompt, questions=30)
    for budget in (1, 40, 200):
        batches = plan(questions(requests), 10_000, budget)
        assert sorted(item.index for batch in batches for item in batch.prompts) == list(range(30))
        assert all(batch.tokens <= budget or len(batch.prompts) == 1 for batch in batches)


def test_memory_does_not_grow_with_batches(tiny_llama, prompt):
    llm = LLM.load(tiny_llama.folder, device="cpu")
    scorer = llm.scorer(30)
    sizes = set()
    for batch in scorer.plan(questions(few_shot(prompt))):
        scorer.score(batch)
        sizes.add(scorer.prefix.state.nbytes)
    assert len(sizes) == 1


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
def test_cuda_scores_equal_full_passes(tiny, prompt):
    llm = LLM.load(tiny.folder, device="cuda", dtype="float32")
    requests = mixed(prompt)
    expected = [reference(tiny, *request) for request in requests]
    for score, (loglikelihood, greedy) in zip(llm.score(requests, 100), expected, strict=True):
        assert score.loglikelihood == pytest.approx(loglikelihood, abs=1e-3)
        assert score.is_greedy == greedy


def test_an_invalid_request_is_refused(tiny_llama):
    llm = LLM.load(tiny_llama.folder, device="cpu")
    assert llm.score([]) == []
    for request, message in (([], [1]), "at least 1"), (([1], [128]), "0 to 127"), (([1], [1] * 257), "1 to 256"):
        with pytest.raises(BareloopError, match=message):
            llm.score([request])
    with pytest.raises(BareloopError, match="batch_tokens is -1"):
        llm.score([([1], [2])], -1)
