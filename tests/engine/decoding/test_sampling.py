"""Filters and penalties against NumPy and transformers; random draws against their distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decoding.loop import check_params
from engine.decoding.params import SamplingParams
from engine.decoding.sampling import Context, adjust, choose, cutoff, draw, top_logprobs, uniform, unpack_logprobs
from engine.runtime.errors import UsageError

ROWS = st.lists(
    st.lists(st.integers(-400, 400).map(lambda x: x / 16), min_size=12, max_size=12), min_size=1, max_size=3
)
GOLDEN = [0.524181528582, 0.804794567115, 0.562847686963]  # must never change: a seed gives the same text for ever
IDS = st.lists(st.integers(0, 11), min_size=1, max_size=15)


def nucleus(row: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Which entries are kept, by sorting and cumulative sums. Entries as likely as the last one kept are kept, too."""
    row = row.astype(np.float64)
    keep = np.ones(len(row), bool)
    if top_k:
        keep &= row >= np.sort(row)[::-1][min(top_k, len(row)) - 1]
    weights = np.where(keep, np.exp(row - row.max()), 0)
    probabilities = weights / weights.sum()
    if top_p < 1:
        order = np.sort(probabilities)[::-1]
        needed = int(np.searchsorted(np.cumsum(order), top_p * (1 - 1e-12)))
        keep &= probabilities >= order[min(needed, len(order) - 1)] * (1 - 1e-9)
    if min_p:
        keep &= row >= row.max() + math.log(min_p) - 1e-9
    return keep


@settings(max_examples=300)
@given(
    ROWS, st.integers(0, 14), st.sampled_from([0.05, 0.31, 0.77, 0.93, 1.0]), st.sampled_from([0.0, 0.013, 0.37, 1.0])
)
def test_filters_equal_numpy(rows, top_k, top_p, min_p):
    logits = torch.tensor(rows)
    params = SamplingParams(temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p)
    kept = (logits >= cutoff(logits, [params] * len(rows))).numpy()
    for row, actual in zip(np.array(rows, np.float32), kept, strict=True):
        assert (actual == nucleus(row, top_k, top_p, min_p)).all()


@pytest.mark.parametrize("scale", [0.0, 0.3, 4.0, 30.0])
def test_top_p_over_a_large_vocabulary_keeps_the_smallest_set_that_reaches_it(scale):
    logits = scale * torch.randn(2, 152_000, generator=torch.Generator().manual_seed(0))
    kept = logits >= cutoff(logits, [SamplingParams(temperature=1.0, top_p=0.9)] * 2)
    probabilities = logits.double().softmax(-1)
    mass = (probabilities * kept).sum(-1)
    least = probabilities.masked_fill(~kept, 1).amin(-1)
    assert (mass >= 0.9 - 1e-9).all()
    assert scale == 0 or (mass - least < 0.9 + 1e-9).all()


def test_filters_equal_transformers():
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 3 * torch.randn(4, 1000, generator=torch.Generator().manual_seed(1))
    params = SamplingParams(temperature=1.0, top_k=50, top_p=0.8, min_p=0.02)
    expected = logits
    for warper in (TopKLogitsWarper(50), TopPLogitsWarper(0.8), MinPLogitsWarper(0.02)):
        expected = warper(None, expected)
    assert torch.equal(logits >= cutoff(logits, [params] * 4), expected > -math.inf)


@settings(max_examples=200)
@given(
    ROWS, IDS, st.integers(0, 15), st.sampled_from([0.5, 1.0, 1.3]), st.sampled_from([-0.5, 0.0, 0.7]),
    st.sampled_from([0.0, 0.4]), st.dictionaries(st.integers(0, 11), st.floats(-5, 5), max_size=3),
)  # fmt: skip
def test_penalties_equal_numpy(rows, ids, start, repetition, presence, frequency, bias):
    start = min(start, len(ids))
    params = SamplingParams(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency, logit_bias=bias
    )
    logits = torch.tensor(rows)
    actual = adjust(logits, [Context(params, ids, start, 0)] * len(rows))
    expected = np.array(rows, np.float64)
    for row in expected:
        for token in set(ids):
            row[token] = row[token] / repetition if row[token] > 0 else row[token] * repetition
        for token in set(ids[start:]):
            row[token] -= presence + frequency * ids[start:].count(token)
        for token, value in bias.items():
            row[token] += value
    assert np.allclose(actual.numpy(), expected, atol=1e-5)
    assert torch.equal(logits, torch.tensor(rows))  # the input is not changed


def test_repetition_penalty_equals_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, ids = torch.randn(2, 50), torch.randint(0, 50, (2, 20))
    expected = RepetitionPenaltyLogitsProcessor(1.3)(ids, logits.clone())
    params = SamplingParams(repetition_penalty=1.3)
    assert torch.allclose(adjust(logits, [Context(params, row, 0, 0) for row in ids.tolist()]), expected)


@pytest.mark.parametrize(
    "params", [{}, {"temperature": 0.7}, {"temperature": 1.5, "top_k": 5}, {"temperature": 1.0, "top_p": 0.8}]
)
def test_draws_follow_the_distribution(params):
    """Chi-square over 20,000 draws at 20,000 positions. A random seed would exceed the bound once in 10^6 runs."""
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -3.0, 1.5]])
    sampling = SamplingParams(**({"temperature": 1.0} | params), seed=5)
    count = 20_000
    scaled = logits.expand(count, -1) / sampling.temperature
    masked = scaled.masked_fill(scaled < cutoff(scaled[:1], [sampling]), -math.inf)
    tokens = draw(masked, uniform([5] * count, range(count)))
    expected = (masked[0].double().softmax(-1) * count).numpy()
    observed = np.bincount(tokens.numpy(), minlength=8)
    assert (observed[expected == 0] == 0).all()
    possible = expected > 0
    chi_square = float((((observed - expected) ** 2)[possible] / expected[possible]).sum())
    freedom = int(possible.sum()) - 1
    assert chi_square < freedom + 4.75 * math.sqrt(2 * freedom) + 12


def test_uniform_numbers_are_uniform_and_depend_only_on_seed_and_position():
    numbers = uniform([3] * 50_000, range(50_000))
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    assert abs(float(numbers.mean()) - 0.5) < 0.01
    assert abs(float(numbers.var()) - 1 / 12) < 0.003
    assert abs(float(torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1])) < 0.03
    seeds = uniform(range(50_000), [7] * 50_000)
    assert abs(float(torch.corrcoef(torch.stack([numbers, seeds]))[0, 1])) < 0.03
    assert uniform([3, 4], [10, 10])[0] == numbers[10]
    assert [round(x, 12) for x in uniform([0, 1, 2**63], [0, 1, 5]).tolist()] == GOLDEN


MIXED = [  # parameters of a batch in which every row has its own
    SamplingParams(),
    SamplingParams(temperature=0.9, top_p=0.95, min_p=0.001),
    SamplingParams(temperature=1.3, top_k=7),
    SamplingParams(repetition_penalty=1.4, presence_penalty=0.3),
    SamplingParams(temperature=0.7, top_k=40, top_p=0.5, frequency_penalty=0.2),
    SamplingParams(temperature=1.0, logit_bias={5: 4.0, 17: -math.inf}),
    SamplingParams(temperature=2.0, min_p=0.05),
    SamplingParams(logit_bias={250: 30.0}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_gets_the_same_token_alone_and_among_rows_with_other_parameters(dtype):
    logits = (3 * torch.randn(32, 300, generator=torch.Generator().manual_seed(2))).to(dtype)
    allowed = torch.arange(300) % 3 == 0
    contexts = [
        Context(MIXED[row % 8], [row + 1] * (row + 1), row // 2, row, allowed if row % 5 == 0 else None)
        for row in range(32)
    ]
    together = choose(logits, contexts)
    for row, context in enumerate(contexts):
        assert choose(logits[row : row + 1], [context]) == together[row]
    assert (together[::5] % 3 == 0).all()


@pytest.mark.parametrize("temperature", [1e-3, 1e-38, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = 9 * torch.randn(4, 500, generator=torch.Generator().manual_seed(3))
    params = SamplingParams(temperature=temperature, top_p=0.9)
    contexts = [Context(params, [1], 1, seed) for seed in range(4)]
    assert torch.equal(choose(logits, contexts), logits.argmax(-1))


def test_greedy_breaks_ties_by_the_lowest_id():
    logits = torch.tensor([[0.0, 2.0, 2.0], [1.0, 0.0, -1.0]])
    assert choose(logits, [Context(SamplingParams(), [0], 0, 0)] * 2).tolist() == [1, 0]


def test_logprobs_are_the_log_softmax_of_the_logits():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    ((chosen, top),) = unpack_logprobs(top_logprobs(logits, torch.tensor([2]), 2).tolist())
    expected = logits[0].log_softmax(-1).tolist()
    assert chosen == pytest.approx(expected[2])
    assert [token for token, _ in top] == [1, 2]
    assert [value for _, value in top] == pytest.approx([expected[1], expected[2]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1}, "temperature = -1: use a number from 0 to 1e.06"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"top_p": 0}, "top_p = 0: use more than 0, up to 1"),
        ({"top_k": -3}, "top_k = -3"),
        ({"min_p": 1.5}, "min_p = 1.5: use a number from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty = 0"),
        ({"presence_penalty": math.inf}, "presence_penalty = inf: use a number from -1e.06 to 1e.06"),
        ({"stop": ["x"] * 1000}, "stop has 1000 strings: use up to 64"),
        ({"stop": [""]}, "none of them empty"),
        ({"stop": "x"}, "a list of strings"),
        ({"logprobs": -1}, "logprobs = -1"),
        ({"top_k": 2.5}, "top_k = 2.5: use a whole number, 0 or more"),
        ({"max_new_tokens": "9"}, "max_new_tokens = '9': use a whole number, 1 or more"),
        ({"temperature": "hot"}, "temperature = 'hot': use a number"),
        ({"seed": "a"}, "seed = 'a': use a whole number"),
        ({"stop": 5}, "stop = 5: use a list"),
        ({"stop_token_ids": 5}, "stop_token_ids = 5: use a list"),
        ({"logit_bias": [5]}, "logit_bias = .5.: use a mapping"),
        ({"stop": [1]}, "stop = .1.: use strings"),
        ({"stop_token_ids": [1.5]}, "whole numbers, and stop_token_ids or logit_bias has 1.5"),
        ({"logit_bias": {5: 1e39}}, "logit_bias of token 5 is 1e.39: use a number from"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty = 1e-300"),
    ],
)
def test_an_invalid_value_is_refused_with_its_limit(values, message):
    with pytest.raises(UsageError, match=message):
        SamplingParams(**values)


def test_a_bias_on_a_token_outside_the_vocabulary_is_refused():
    with pytest.raises(UsageError, match="token 9; the model's tokens are 0 to 2"):
        check_params(SamplingParams(logit_bias={9: 1.0}), vocab_size=3, tokenizer=None)
