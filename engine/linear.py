"""One linear layer. How its weight is stored is its own affair: nothing above this file knows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Module):
    """y = x Wᵀ + b over the last dimension: [..., in] -> [..., sum(splits)].

    Several projections of the same input are one matrix, stacked by rows: `splits` are their heights, and
    one product reads the input once. Loading, saving and adapters find each projection by its rows.
    """

    def __init__(self, in_features: int, *splits: int, bias: bool = False) -> None:
        super().__init__()
        self.splits = splits
        self.weight = nn.Parameter(torch.empty(sum(splits), in_features))
        self.bias = nn.Parameter(torch.empty(sum(splits))) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)
