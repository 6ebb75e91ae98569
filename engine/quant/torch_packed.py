"""int8 and int4 on a CPU without a C++ compiler: the same weights, in the layouts of PyTorch's own operators."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.quant.base import Format, Tensors, weight_and_scales
from engine.quant.panels import GROUP, Panels, dequantize, quantize4, quantize8

MAX_FEW_ROWS = 16  # rows of x; for more, the matrix is dequantized
STEP = 1024  # rows or columns converted at once
aten = torch.ops.aten


def torch_packed_format(bits: int, rows: int, columns: int, dtype: torch.dtype) -> TorchInt8 | TorchInt4:
    """PyTorch's format with this number of bits, 8 or 4."""
    return TorchInt8(rows, columns, dtype) if bits == 8 else TorchInt4(rows, columns, dtype)


def from_panel_format(weight_format: Panels, tensors: Tensors) -> tuple[Format, dict[str, Tensor]]:
    """Convert a matrix from panels to PyTorch's layout. int4 with smaller groups than that layout has becomes int8."""
    same_codes = weight_format.bits == 8 or weight_format.group == GROUP
    other = torch_packed_format(
        weight_format.bits if same_codes else 8, weight_format.rows, weight_format.columns, weight_format.dtype
    )
    new = other.empty(torch.device("cpu"))
    for first in range(0, weight_format.rows, STEP):
        last = min(first + STEP, weight_format.rows)
        if same_codes:
            other.set_codes(new, first, *weight_format.codes(tensors, first, last))
        else:
            other.fill(new, first, weight_format.dense(tensors, first, last, torch.float32))
    return other, new


def to_panel_format(weight_format: Format, tensors: Tensors) -> dict[str, Tensor]:
    """Convert a matrix from PyTorch's layout to panels; empty for any other format, which is stored as it is."""
    if not isinstance(weight_format, TorchInt8 | TorchInt4):
        return {}
    panels = Panels(
        weight_format.rows, weight_format.columns, weight_format.dtype, 8 if isinstance(weight_format, TorchInt8) else 4
    )
    new = panels.empty(torch.device("cpu"))
    for first in range(0, weight_format.rows, STEP):
        panels.set_codes(new, first, *weight_format.codes(tensors, first, min(first + STEP, weight_format.rows)))
    return new


class TorchInt8(Format):
    """Codes [rows, columns] and one scale per row."""

    def empty(self, device: torch.device) -> dict[str, Tensor]:
        codes = torch.empty(self.rows, self.columns, dtype=torch.int8, device=device)
        return {"weight": codes, "scales": torch.empty(self.rows, device=device)}

    def fill(self, tensors: Mapping[str, Tensor], first: int, part: Tensor) -> None:
        self.set_codes(tensors, first, *quantize8(part))

    def set_codes(self, tensors: Mapping[str, Tensor], first: int, codes: Tensor, scales: Tensor) -> None:
        """Store rows that are already quantized."""
        tensors["weight"][first : first + len(codes)] = codes
        tensors["scales"][first : first + len(codes)] = scales

    def codes(self, tensors: Tensors, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Codes and scales of rows `first` to `last`, as `set_codes` takes them."""
        weight, scales = weight_and_scales(tensors)
        return weight[first:last], scales[first:last]

    def dense(self, tensors: Tensors, first: int, last: int, dtype: torch.dtype) -> Tensor:
        return dequantize(*self.codes(tensors, first, last), dtype)

    def product(self, tensors: Tensors, x: Tensor) -> Tensor:
        if (
            len(x) > MAX_FEW_ROWS or self.columns % 16 or torch.is_grad_enabled()
        ):  # PyTorch's operator does not check these
            return self.product_by_blocks(tensors, x)
        codes, scales = self.codes(tensors, 0, self.rows)
        y = aten._weight_int8pack_mm(x.contiguous(), codes, scales.to(x.dtype))
        return y if tensors["bias"] is None else y + tensors["bias"]

    def lookup(self, tensors: Tensors, ids: Tensor) -> Tensor:
        weight, scales = weight_and_scales(tensors)
        return dequantize(weight[ids], scales[ids], self.dtype)


class TorchInt4(Format):
    """Codes packed for `_weight_int4pack_mm_for_cpu`; scales and zero points [columns / GROUP, rows, 2]."""

    def empty(self, device: torch.device) -> dict[str, Tensor]:
        codes = torch.empty(self.rows, self.columns // 2, dtype=torch.uint8, device=device)
        scales = torch.zeros(self.columns // GROUP, self.rows, 2, dtype=torch.bfloat16, device=device)
        return {"weight": codes, "scales": scales}

    def fill(self, tensors: Mapping[str, Tensor], first: int, part: Tensor) -> None:
        self.set_codes(tensors, first, *quantize4(part))

    def set_codes(self, tensors: Mapping[str, Tensor], first: int, codes: Tensor, scales: Tensor) -> None:
        """Store rows that are already quantized."""
        last = first + len(codes)
        tensors["weight"][first:last] = aten._convert_weight_to_int4pack_for_cpu(codes.int() + 8, 1)
        tensors["scales"][:, first:last, 0] = scales.T

    def codes(self, tensors: Tensors, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Codes and scales, as `set_codes` takes them. The packed codes are read by multiplying with the identity."""
        weight, scales = weight_and_scales(tensors)
        ones = torch.zeros(self.columns // GROUP, last - first, 2)
        ones[..., 0] = 1
        codes = torch.empty(last - first, self.columns, dtype=torch.int8)
        for column in range(0, self.columns, STEP):
            x = torch.zeros(min(STEP, self.columns - column), self.columns)
            x.diagonal(column).fill_(1)
            product = aten._weight_int4pack_mm_for_cpu(x, weight[first:last], GROUP, ones)
            codes[:, column : column + len(x)] = product.T.round()
        return codes, scales[:, first:last, 0].T

    def dense(self, tensors: Tensors, first: int, last: int, dtype: torch.dtype) -> Tensor:
        return dequantize(*self.codes(tensors, first, last), dtype)

    def product(self, tensors: Tensors, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.product_by_blocks(tensors, x)
        weight, scales = weight_and_scales(tensors)
        y = aten._weight_int4pack_mm_for_cpu(x.contiguous(), weight, GROUP, scales.to(x.dtype))
        return y if tensors["bias"] is None else y + tensors["bias"]
