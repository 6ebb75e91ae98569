"""One linear layer. How its weight is stored is its own affair: nothing above this file knows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine import kernels

PACKED_ROWS = 16  # of fewer, a product is bound by reading the weight once, and has its own ways


class Linear(nn.Module):
    """y = x Wᵀ + b : [N, in] -> [N, sum(splits)].

    Several projections of the same input are one matrix, stacked by rows: `splits` are their heights, and
    one product reads the input once. Loading, saving and adapters find each projection by its rows.
    """

    def __init__(self, in_features: int, *splits: int, bias: bool = False) -> None:
        super().__init__()
        self.splits = splits
        self.weight = nn.Parameter(torch.empty(sum(splits), in_features))
        self.bias = nn.Parameter(torch.empty(sum(splits))) if bias else None
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._packed is not None and len(x) >= PACKED_ROWS:
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        ops = kernels.few(x)
        if ops is not None:
            return ops.linear(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)

    def pack(self) -> None:
        """Keep a second copy of a frozen bfloat16 weight, in the blocks that oneDNN's product on a CPU reads.

        Else they are made anew in every product. The results are the same bits; hundreds of rows take 6 to 10 %
        less time. For any other weight nothing happens.
        """
        weight = self.weight.detach()
        frozen = weight.dtype == torch.bfloat16 and not self.weight.requires_grad
        if weight.device.type == "cpu" and frozen and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
