"""Linear and Embedding: a weight matrix in any format. Nothing above this file knows which."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine import kernels
from engine.kernels import gpu
from engine.layers.lora import Adapter, adapted_product
from engine.quant.base import Format, gradient_by_blocks, kernel_multiply, needs_float32, product_by_blocks
from engine.runtime.device import can_pack_bfloat16, slow_bfloat16
from engine.runtime.memory import use_large_pages

PACKED_ROWS = 16  # of x, from which the packed weight is used; products of fewer rows are bound by reading the weight


class Matrix(nn.Module):
    """A weight [rows, columns]: dense and trainable at first, or frozen in a format once one is set."""

    weight: nn.Parameter
    scales: nn.Parameter | None

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.weight = nn.Parameter(torch.empty(rows, columns))
        self.register_parameter("scales", None)
        self.format: Format | None = None
        self.is_mapped = False  # whether the weight is in a mapped file

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the input and output of products."""
        return self.weight.dtype if self.format is None else self.format.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the weight with its scales, without the bias."""
        return sum(tensor.nbytes for tensor in self.weight_tensors().values())

    def weight_tensors(self) -> dict[str, nn.Parameter]:
        """The tensors of the weight by name, without the bias."""
        return {name: tensor for name, tensor in self.named_parameters(recurse=False) if name != "bias"}

    def set_format(self, weight_format: Format, tensors: Mapping[str, Tensor]) -> None:
        """Replace the weight by these tensors in this format."""
        self.format = weight_format
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def share(self, other: Matrix) -> None:
        """Use another matrix's weight (tied embeddings)."""
        self.format = other.format
        for name, tensor in other.weight_tensors().items():
            self.register_parameter(name, tensor)


class Embedding(Matrix):
    """Token ids [N] -> rows of the table [N, D]."""

    def forward(self, tokens: Tensor) -> Tensor:
        if self.format is not None:
            return self.format.lookup(self._parameters, tokens)
        return F.embedding(tokens, self.weight)


class Linear(Matrix):
    """y = x Wᵀ + b : [N, in] -> [N, sum(splits)].

    Several projections of the same input are stacked by rows into one matrix, so that one product reads the input
    once; `splits` are their heights. Loading, saving and adapters find each projection by its rows. An `exact` matrix
    is never quantized. With an `adapter` the weight is frozen.
    """

    bias: nn.Parameter | None
    adapter: Adapter | None

    def __init__(self, in_features: int, *splits: int, bias: bool = False, exact: bool = False) -> None:
        super().__init__(sum(splits), in_features)
        self.splits = splits
        self.exact = exact
        self.register_parameter("bias", nn.Parameter(torch.empty(sum(splits))) if bias else None)
        self.register_module("adapter", None)
        self._packed: Tensor | None = None  # the weight in oneDNN's layout
        self._wide: Tensor | None = None  # the weight in float32

    def forward(self, x: Tensor) -> Tensor:
        return self._adapted(x, self.bias)

    def without_bias(self, x: Tensor) -> Tensor:
        """x Wᵀ, for a caller that adds the bias in another dtype. The weight is dense."""
        return self._adapted(x, None)

    def _adapted(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if (self.format is not None or self.adapter is not None) and _is_autocast(x):
            with torch.autocast(x.device.type, enabled=False):
                return self._adapted(x.to(self.dtype), bias)
        if torch.is_grad_enabled() and (self.format is not None or self.adapter is not None):
            return adapted_product(self, x, bias)
        if self.adapter is None:
            return self._product(x, bias)
        multiply = kernel_multiply(x) if self.format is None or self.format.fused else None
        if multiply is not None:
            packed = self.adapter.packed(x.dtype)
            return multiply(x, self.weight, self.scales, bias, packed.data, packed.sizes)
        y = self._product(x, bias)
        return self.adapter.packed(y.dtype).add_to(y, x)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.format is not None:
            return self.format.product(self._parameters, x)
        ops = kernels.for_input(x)
        if ops is not None:
            return ops.linear(x, self.weight, None, bias)
        if (ops := gpu.for_rows(x)) is not None and self.is_dense_with_few(x):
            return ops.dense_linear(x, self.weight, bias)
        if self._packed is not None and len(x) >= PACKED_ROWS:
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, "none", [], "")
        if needs_float32(x):
            if (multiply := kernel_multiply(x)) is not None:
                return multiply(x, self.weight, None, bias)
            return product_by_blocks(x, self.rows, self._rows, bias)
        return F.linear(x, self.weight, bias)

    def gelu(self, x: Tensor) -> Tensor:
        """GELU, by tanh, of the product. Where oneDNN has both in one operation, they are rounded once."""
        if not self.is_onednn(x):
            return F.gelu(self(x), approximate="tanh")
        weight = self.weight if self._packed is None else self._packed
        return torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "gelu", [], "tanh")

    def is_onednn(self, x: Tensor) -> bool:
        """Whether the product is oneDNN's in bfloat16: of many rows, for inference, on a CPU that is fast in it."""
        if torch.is_grad_enabled() or self.format is not None or self.adapter is not None or x.device.type != "cpu":
            return False
        if x.dtype != torch.bfloat16 or self.dtype != x.dtype or len(x) <= kernels.MAX_ROWS or _is_autocast(x):
            return False
        return can_pack_bfloat16() and not slow_bfloat16()

    def exact_product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product for training, in which x is not quantized, whatever the number of its rows."""
        if self.format is not None:
            return self.format.product_by_blocks(self._parameters, x)
        return self._product(x, bias)

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """gradient [N, out] of the product -> gradient of its input [N, in], without an adapter's."""
        if self.format is None and not needs_float32(gradient):
            return gradient @ self.weight
        dense = self._rows if self.format is None else partial(self.format.dense, self._parameters)
        return gradient_by_blocks(gradient, self.columns, dense)

    def is_dense_with_few(self, x: Tensor) -> bool:
        """Whether the weight is dense, and x has so few rows that reading the weight takes most of a product's time."""
        if self.format is not None:
            return False
        return x.dtype == self.weight.dtype and 0 < len(x) <= gpu.MAX_DENSE_ROWS

    def _rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        return (self.weight if self._wide is None else self._wide)[first:last].to(dtype)

    def replace_weight(self, weight: Tensor) -> None:
        """Use another dense weight, or the present one after a change. Copies that `pack` has made are dropped."""
        self.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        self._packed = self._wide = None
        self.is_mapped = False

    def merge_adapter(self) -> tuple[float, float]:
        """W += s B A, without the adapter from then on. The weight is dense. -> see `Adapter.merge_into`

        It is changed in place; a weight in a mapped file is replaced.
        """
        assert self.adapter is not None and self.format is None
        weight = self.weight.detach()
        if self.is_mapped or weight.is_inference():
            weight = use_large_pages(torch.empty_like(weight)).copy_(weight)
        rounding = self.adapter.merge_into(weight)
        self.replace_weight(weight)
        self.adapter = None
        return rounding

    def pack(self) -> None:
        """Keep a second copy of a frozen bfloat16 weight, as products of many rows need it on this CPU.

        That is oneDNN's blocked layout, or float32 where products are faster in that. Otherwise each product reorders
        or converts the weight. The results are the same bits; products of hundreds of rows take 6 to 15 % less time. No
        effect for other dtypes and devices.
        """
        weight = self.weight.detach()
        if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or self.weight.requires_grad:
            return
        if slow_bfloat16():
            self._wide = weight.float()
        elif can_pack_bfloat16():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)


def _is_autocast(x: Tensor) -> bool:
    """Whether products of x are cast to the dtype of `torch.autocast`."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def takes_fused_kernels(module: nn.Module) -> bool:
    """Whether the C++ kernels for whole blocks support the formats of all matrices in a module."""
    return all(weight_format.fused for weight_format in formats_of(module))


def is_adapted(module: nn.Module) -> bool:
    """Whether any matrix in a module has an adapter."""
    return any(isinstance(inner, Adapter) for inner in module.modules())


def formats_of(module: nn.Module) -> list[Format]:
    """The formats of all matrices in a module that are not dense."""
    matrices = (inner for inner in module.modules() if isinstance(inner, Matrix))
    return [matrix.format for matrix in matrices if matrix.format is not None]
