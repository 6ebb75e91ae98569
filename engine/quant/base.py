"""The interface of a weight format: how one frozen matrix is stored and multiplied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

ROW_MULTIPLE = 64  # `fill` takes rows from any multiple of this on, in every format
DENSE_BLOCK = 16 * 2**20  # bytes of a weight that are dequantized at once to multiply many rows

Tensors = Mapping[str, Tensor | None]  # a matrix's tensors by name, as its module has them: "weight", …, "bias"


@dataclass(frozen=True)
class Format(ABC):
    """A frozen matrix [rows, columns], stored as named tensors, the largest of which is "weight"."""

    rows: int
    columns: int
    dtype: torch.dtype  # of the input and output of products

    fused = False  # whether the C++ kernels for whole blocks take this format

    @abstractmethod
    def empty(self, device: torch.device) -> dict[str, Tensor]:
        """Allocate the stored tensors, uninitialized."""

    @abstractmethod
    def fill(self, tensors: Mapping[str, Tensor], first: int, part: Tensor) -> None:
        """Quantize part [n, columns] (float32) into rows `first`, a multiple of `ROW_MULTIPLE`, and following."""

    def begin(self, device: torch.device) -> dict[str, Tensor]:
        """Allocate the tensors that `fill` writes, if they are not yet those that are stored."""
        return self.empty(device)

    def finish(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn the filled tensors of `begin` into those that are stored."""
        return tensors

    @abstractmethod
    def dense(self, tensors: Tensors, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """Dequantize rows `first` (a multiple of `ROW_MULTIPLE`) to `last`: -> [last - first, columns]."""

    @abstractmethod
    def product(self, tensors: Tensors, x: Tensor) -> Tensor:
        """x [N, columns] times the transposed matrix, plus the bias: -> [N, rows]."""

    def lookup(self, tensors: Tensors, ids: Tensor) -> Tensor:
        """Rows of the matrix as an embedding: ids [N] -> [N, columns]."""
        raise NotImplementedError(f"{type(self).__name__} is not implemented for embeddings")

    def product_by_blocks(self, tensors: Tensors, x: Tensor) -> Tensor:
        """The product for many rows of x. On a CPU one block of the matrix at a time is dequantized."""
        if x.device.type != "cpu":
            return F.linear(x, self.dense(tensors, 0, self.rows, x.dtype), tensors["bias"])
        size = max(1, DENSE_BLOCK // (self.columns * x.element_size() * ROW_MULTIPLE)) * ROW_MULTIPLE
        starts = range(0, self.rows, size)
        blocks = (self.dense(tensors, first, min(first + size, self.rows), x.dtype) for first in starts)
        y = torch.cat([F.linear(x, block) for block in blocks], dim=-1)
        return y if tensors["bias"] is None else y + tensors["bias"]


def weight_and_scales(tensors: Tensors) -> tuple[Tensor, Tensor]:
    """The two tensors that every format has."""
    weight, scales = tensors["weight"], tensors["scales"]
    assert weight is not None and scales is not None
    return weight, scales
