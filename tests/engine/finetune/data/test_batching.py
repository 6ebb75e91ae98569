"""Packing: every example once, within the bound, in an order that only the seed and the epoch decide."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from engine.finetune.data import Example, batches

LENGTHS = st.lists(st.integers(1, 60), max_size=200)


def examples(lengths):
    return [Example([0] * length, [False] * length) for length in lengths]


@given(LENGTHS, st.integers(1, 100), st.integers(), st.integers(0, 9))
def test_every_example_is_in_one_batch_within_the_bound(lengths, batch_tokens, seed, epoch):
    result = batches(examples(lengths), batch_tokens, seed, epoch)
    assert sorted(index for batch in result for index in batch) == list(range(len(lengths)))
    for batch in result:
        assert batch
        assert sum(lengths[index] for index in batch) <= batch_tokens or len(batch) == 1
    assert result == batches(examples(lengths), batch_tokens, seed, epoch)


@given(LENGTHS.filter(lambda lengths: len(lengths) > 20))
def test_two_batches_that_follow_each_other_do_not_fit_into_one(lengths):
    totals = [sum(lengths[index] for index in batch) for batch in batches(examples(lengths), 64, 0, 0)]
    assert all(left + right > 64 for left, right in pairwise(totals))


def test_seeds_and_epochs_have_orders_of_their_own():
    data = examples([5] * 50)
    orders = {tuple(map(tuple, batches(data, 20, seed, epoch))) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_little_is_left_empty():
    random = Random(0)
    lengths = [random.randint(100, 400) for _ in range(2000)]
    count = len(batches(examples(lengths), 2048, 0, 0))
    assert sum(lengths) / (2048 * count) > 0.97


def test_the_order_is_the_same_on_every_machine():
    assert batches(examples([3, 9, 4, 2, 7, 5]), 10, 1, 2) == [[3, 0, 2], [1], [4], [5]]
