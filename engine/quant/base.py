"""What a weight format is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TOGETHER = 64  # rows that every format can quantize without those before them
BLOCK = 16 * 2**20  # bytes of a weight that are made dense at once for many rows of x

Held = Mapping[str, Tensor | None]  # a matrix's tensors by name, as its module has them: "weight", others, "bias"


@dataclass(frozen=True)
class Format(ABC):
    """How one frozen matrix [rows, columns] is held: as named tensors, the largest of which is "weight"."""

    rows: int
    columns: int
    dtype: torch.dtype  # of what it multiplies, and of the product

    fused = False  # whether the CPU's kernels for whole blocks take it

    @abstractmethod
    def empty(self, device: torch.device) -> dict[str, Tensor]:
        """The tensors that are kept, without their content."""

    @abstractmethod
    def fill(self, held: Mapping[str, Tensor], first: int, part: Tensor) -> None:
        """Quantize the rows from `first` on, a multiple of `TOGETHER`: part [n, columns], in float32."""

    def begin(self, device: torch.device) -> dict[str, Tensor]:
        """What `fill` fills, where that is not yet what is kept."""
        return self.empty(device)

    def finish(self, held: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is kept once all rows are filled."""
        return held

    @abstractmethod
    def dense(self, held: Held, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """Rows first (a multiple of `TOGETHER`) to last, as numbers [last - first, columns]."""

    @abstractmethod
    def product(self, held: Held, x: Tensor) -> Tensor:
        """x [N, columns] times the matrix, plus its bias -> [N, rows]."""

    def lookup(self, held: Held, ids: Tensor) -> Tensor:
        """Rows of the matrix, as an embedding: ids [N] -> [N, columns]."""
        raise NotImplementedError(f"{type(self).__name__} is no format of embeddings")

    def by_blocks(self, held: Held, x: Tensor) -> Tensor:
        """The product for many rows: a block of the matrix at a time is made dense."""
        if x.device.type != "cpu":
            return F.linear(x, self.dense(held, 0, self.rows, x.dtype), held["bias"])
        size = max(1, BLOCK // (self.columns * x.element_size() * TOGETHER)) * TOGETHER
        blocks = (self.dense(held, first, min(first + size, self.rows), x.dtype) for first in range(0, self.rows, size))
        y = torch.cat([F.linear(x, block) for block in blocks], dim=-1)
        return y if held["bias"] is None else y + held["bias"]


def weight_and_scales(held: Held) -> tuple[Tensor, Tensor]:
    """The two tensors that every format has."""
    weight, scales = held["weight"], held["scales"]
    assert weight is not None and scales is not None
    return weight, scales
