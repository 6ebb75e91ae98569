"""Batches of rows for bidirectional attention: every token is in one, and little is padded."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional as F

from engine.layers.bidirectional import MAX_PADDED, BidirectionalAttention, batches

CPU = torch.device("cpu")


@pytest.mark.parametrize("order", ["sorted", "as they come"])
def test_batches_cover_all_tokens_and_pad_little(order):
    lengths = [random.Random(0).choice((1, 2, 9, 10, 11, 40)) for _ in range(60)]
    lengths = sorted(lengths, reverse=True) if order == "sorted" else lengths
    grouped = batches(lengths, CPU)
    assert sum(batch.count for batch in grouped) == len(lengths)
    assert [batch.tokens.start for batch in grouped[1:]] == [batch.tokens.stop for batch in grouped[:-1]]
    assert grouped[-1].tokens.stop == sum(lengths)
    for batch in grouped:
        tokens = batch.tokens.stop - batch.tokens.start
        assert batch.count * batch.longest <= MAX_PADDED * tokens
        assert (batch.places is None) == (batch.count * batch.longest == tokens)
    assert order != "sorted" or len(grouped) <= 6


def test_every_row_attends_to_itself_alone():
    torch.manual_seed(0)
    attention, lengths = BidirectionalAttention(24, 3).double(), [9, 8, 8, 8, 2, 1]
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(sum(lengths), 24, dtype=torch.float64)
    expected = []
    for row in torch.split(x, lengths):
        q, k, v = attention.qkv(row).view(len(row), 3, 3, 8).permute(1, 2, 0, 3)
        expected.append((F.softmax(q @ k.mT / 8**0.5, -1) @ v).transpose(0, 1).flatten(1))
    assert torch.allclose(attention(x, batches(lengths, CPU)), attention.out(torch.cat(expected)), atol=1e-12)
