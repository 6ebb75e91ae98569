"""A weight matrix. How it is stored is its own affair: nothing above this file knows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine import kernels
from engine.quant.base import Format

PACKED_ROWS = 16  # of fewer, a product is bound by reading the weight once, and has its own ways


class Matrix(nn.Module):
    """A weight [rows, columns]: plain numbers to begin with, which train; or frozen, in the format that it is given."""

    weight: nn.Parameter
    scales: nn.Parameter | None

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.weight = nn.Parameter(torch.empty(rows, columns))
        self.register_parameter("scales", None)
        self.format: Format | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of what it multiplies, and of the product."""
        return self.weight.dtype if self.format is None else self.format.dtype

    @property
    def nbytes(self) -> int:
        """Of the weight and what belongs to it; without a bias."""
        return sum(tensor.nbytes for tensor in self.held().values())

    def held(self) -> dict[str, nn.Parameter]:
        """The tensors of the weight by name, without a bias."""
        return {name: tensor for name, tensor in self.named_parameters(recurse=False) if name != "bias"}

    def hold(self, form: Format, tensors: Mapping[str, Tensor]) -> None:
        """From here on the weight is these tensors, in this format."""
        self.format = form
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def share(self, other: Matrix) -> None:
        """Have another's weight as one's own (tied embeddings)."""
        self.format = other.format
        for name, tensor in other.held().items():
            self.register_parameter(name, tensor)


class Embedding(Matrix):
    """Token ids [N] -> rows of the table [N, D]."""

    def forward(self, tokens: Tensor) -> Tensor:
        if self.format is not None:
            return self.format.lookup(self._parameters, tokens)
        return F.embedding(tokens, self.weight)


class Linear(Matrix):
    """y = x Wᵀ + b : [N, in] -> [N, sum(splits)].

    Several projections of the same input are one matrix, stacked by rows: `splits` are their heights, and
    one product reads the input once. Loading, saving and adapters find each projection by its rows.
    `exact` ones keep their numbers in every format.
    """

    bias: nn.Parameter | None

    def __init__(self, in_features: int, *splits: int, bias: bool = False, exact: bool = False) -> None:
        super().__init__(sum(splits), in_features)
        self.splits = splits
        self.exact = exact
        self.register_parameter("bias", nn.Parameter(torch.empty(sum(splits))) if bias else None)
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.format is not None:
            return self.format.product(self._parameters, x)
        if self._packed is not None and len(x) >= PACKED_ROWS:
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        ops = kernels.few(x)
        if ops is not None:
            return ops.linear(x, self.weight, None, self.bias)
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


def fused(module: nn.Module) -> bool:
    """Whether the CPU's kernels for whole blocks take all matrices of a module."""
    matrices = [inner for inner in module.modules() if isinstance(inner, Matrix)]
    return all(matrix.format is None or matrix.format.fused for matrix in matrices)
