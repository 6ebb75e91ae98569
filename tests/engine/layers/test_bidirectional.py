"""Batches of rows for bidirectional attention: every token is in one, and little is padded."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional as F

from engine.layers.bidirectional import MAX_FEW, MAX_SHARE, BidirectionalAttention, pad_rows

CPU = torch.device("cpu")


@pytest.mark.parametrize("order", ["sorted", "as they come"])
def test_batches_cover_all_tokens_and_pad_little(order):
    lengths = [random.Random(0).choice((1, 2, 9, 10, 11, 40)) for _ in range(60)]
    lengths = sorted(lengths, reverse=True) if order == "sorted" else lengths
    rows = pad_rows(lengths, CPU)
    assert sum(batch.count for batch in rows.batches) == len(lengths)
    assert [batch.tokens.start for batch in rows.batches[1:]] == [batch.tokens.stop for batch in rows.batches[:-1]]
    first = 0
    for batch in rows.batches:
        sizes = lengths[first : first + batch.count]
        first += batch.count
        assert batch.longest == max(sizes)
        assert batch.tokens.stop - batch.tokens.start == batch.count * batch.longest
        assert batch.count * batch.longest - sum(sizes) <= max(MAX_FEW, MAX_SHARE * sum(sizes))
        visible = torch.ones(batch.count, batch.longest) if batch.visible is None else batch.visible[:, 0, 0]
        assert visible.sum(1).tolist() == sizes
        assert (batch.visible is None) == (min(sizes) == max(sizes))
    assert order != "sorted" or len(rows.batches) <= 10


def test_tokens_are_padded_with_the_last_of_their_row_and_unpadded_as_they_were():
    rows = pad_rows([3, 1, 2, 2], CPU)
    assert rows.pad(torch.arange(8)).tolist() == [0, 1, 2, 3, 3, 3, 4, 5, 5, 6, 7, 7]
    assert rows.unpad(rows.pad(torch.arange(8))).tolist() == list(range(8))


def test_rows_of_one_length_have_no_padding():
    rows = pad_rows([7] * 5, CPU)
    assert len(rows.batches) == 1
    assert (rows.places, rows.kept, rows.batches[0].visible) == (None, None, None)


def test_every_row_attends_to_itself_alone():
    torch.manual_seed(0)
    attention, lengths = BidirectionalAttention(24, 3).double(), [30, 9, 8, 8, 8, 2, 1]
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(sum(lengths), 24, dtype=torch.float64)
    expected = []
    for row in torch.split(x, lengths):
        q, k, v = attention.qkv(row).view(len(row), 3, 3, 8).permute(1, 2, 0, 3)
        expected.append((F.softmax(q @ k.mT / 8**0.5, -1) @ v).transpose(0, 1).flatten(1))
    rows = pad_rows(lengths, CPU)
    assert len(rows.batches) == 3
    attended = rows.unpad(attention(rows.pad(x), rows.batches))
    assert torch.allclose(attended, attention.out(torch.cat(expected)), atol=1e-12)
