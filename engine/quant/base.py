"""The interface of a weight format: how one frozen matrix is stored and multiplied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine import kernels
from engine.runtime.device import slow_bfloat16

ROW_MULTIPLE = 64  # `fill` takes rows from any multiple of this on, in every format
# Bytes of a weight that are dequantized or converted at once to multiply many rows: what a cache holds on a CPU; on a
# GPU only the largest matrices are in pieces, to save memory.
DENSE_BLOCK, GPU_DENSE_BLOCK = 16 * 2**20, 256 * 2**20
LARGE_ROWS = 1024  # of x, from which writing a weight in float32 to memory pays, as PyTorch's product then needs it
LARGE_TILE_ROWS = 256  # the same for AMX, in bfloat16

Tensors = Mapping[str, Tensor | None]  # a matrix's tensors by name, as its module has them: "weight", …, "bias"


@dataclass(frozen=True)
class Format(ABC):
    """A frozen matrix [rows, columns], stored as named tensors, the largest of which is "weight"."""

    rows: int
    columns: int
    dtype: torch.dtype  # of the input and output of products

    fused = False  # whether the C++ kernels for whole blocks take this format
    capturable = True  # whether a CUDA graph can have its products

    @abstractmethod
    def empty(self, device: torch.device) -> dict[str, Tensor]:
        """Allocate the stored tensors, uninitialized."""

    @abstractmethod
    def fill(self, tensors: Mapping[str, Tensor], first: int, part: Tensor) -> None:
        """Quantize part [n, columns] (float32) into rows `first`, a multiple of `ROW_MULTIPLE`, and following.

        A format that keeps a file's blocks takes them instead.
        """

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
        """The product for many rows of x. One block of the matrix at a time is dequantized."""
        return product_by_blocks(x, self.rows, partial(self.dense, tensors), tensors["bias"])


def kernel_product(tensors: Tensors, x: Tensor) -> Tensor | None:
    """The product by the C++ kernels; None if they do not take x, or `product_by_blocks` is faster.

    They have no float16, so on a CPU it is computed in float32.
    """
    weight, scales = weight_and_scales(tensors)
    bias, is_half = tensors["bias"], x.dtype == torch.float16 and x.device.type == "cpu"
    kernel_x = x.float() if is_half and len(x) <= kernels.MAX_ROWS else x
    multiply = kernel_multiply(kernel_x)
    if multiply is None:
        return None
    y: Tensor = multiply(kernel_x, weight, scales, bias.float() if is_half and bias is not None else bias)
    return y.to(x.dtype)


def kernel_multiply(x: Tensor) -> Any:
    """The C++ kernel for products of this many rows of x, `linear` or `gemm`, if that is the fastest; else None."""
    if (ops := kernels.for_input(x)) is not None:
        return ops.linear
    return None if (ops := many_rows_ops(x)) is None else ops.gemm


def many_rows_ops(x: Tensor) -> Any:
    """The operators if their `gemm` is the fastest product of this many rows of x, else None.

    It converts or dequantizes the weight in cache; for PyTorch's product it is written to memory. A float32 model keeps
    PyTorch's, so that a prompt has the same bits with quantized weights and with the dequantized ones.
    """
    large = LARGE_ROWS if needs_float32(x) else LARGE_TILE_ROWS if kernels.has_tiles(x.dtype) else 0
    return kernels.for_rows(x) if 0 < len(x) < large else None


def product_by_blocks(
    x: Tensor, rows: int, dense: Callable[[int, int, torch.dtype], Tensor], bias: Tensor | None
) -> Tensor:
    """x [N, columns] times a transposed matrix, plus the bias: -> [N, rows].

    `dense(first, last, dtype)` returns rows of the matrix; it is called for one block at a time, of equal sizes.
    If bfloat16 is slow on this CPU, such a product is computed in float32 and rounded once.
    """
    if len(x) == 0:
        return x.new_empty(0, rows)
    dtype = torch.float32 if needs_float32(x) else x.dtype
    wide = x.to(dtype)
    products = []
    for first, last in _blocks(rows, x.shape[-1], dtype, x.device):
        part = None if bias is None else bias[first:last].to(dtype)
        products.append(F.linear(wide, dense(first, last, dtype), part).to(x.dtype))
    return products[0] if len(products) == 1 else torch.cat(products, dim=-1)


def gradient_by_blocks(gradient: Tensor, columns: int, dense: Callable[[int, int, torch.dtype], Tensor]) -> Tensor:
    """The gradient of x in `product_by_blocks`: gradient [N, rows] times the matrix -> [N, columns]."""
    dtype = torch.float32 if needs_float32(gradient) else gradient.dtype
    wide, rows = gradient.to(dtype), gradient.shape[-1]
    total = wide.new_zeros(len(gradient), columns)
    for first, last in _blocks(rows, columns, dtype, gradient.device):
        total.addmm_(wide[:, first:last], dense(first, last, dtype))
    return total.to(gradient.dtype)


def _blocks(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[int, int]]:
    """The first and last row of each block of a matrix that is dequantized at once; the blocks are of equal sizes."""
    block = DENSE_BLOCK if device.type == "cpu" else GPU_DENSE_BLOCK
    largest = max(1, block // (columns * dtype.itemsize * ROW_MULTIPLE)) * ROW_MULTIPLE
    size = -(-rows // -(-rows // largest) // ROW_MULTIPLE) * ROW_MULTIPLE
    for first in range(0, rows, size):
        yield first, min(first + size, rows)


def needs_float32(x: Tensor) -> bool:
    """Whether products of x, bfloat16 on this CPU, are faster in float32. Gradients keep the dtype of the weight."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and not torch.is_grad_enabled() and slow_bfloat16()


def weight_and_scales(tensors: Tensors) -> tuple[Tensor, Tensor]:
    """The two tensors that every format has."""
    weight, scales = tensors["weight"], tensors["scales"]
    assert weight is not None and scales is not None
    return weight, scales
