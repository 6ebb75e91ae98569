"""int8 and int4 on a CPU without a C++ compiler: the same numbers, in the layouts of PyTorch's own products."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.quant.base import Format, Held, weight_and_scales
from engine.quant.panels import GROUP, Panels, numbers, quantize4, quantize8

FEW = 16  # rows of x; for more, the matrix is made dense
STEP = 1024  # rows that are laid out anew at once
aten = torch.ops.aten


def torch_format(bits: int, rows: int, columns: int, dtype: torch.dtype) -> TorchInt8 | TorchInt4:
    """The format of so many bits."""
    return TorchInt8(rows, columns, dtype) if bits == 8 else TorchInt4(rows, columns, dtype)


def unpanelled(form: Panels, held: Held) -> tuple[Format, dict[str, Tensor]]:
    """A matrix in panels -> the same numbers in PyTorch's layout; of smaller groups than that has, in 8 bits."""
    fits = form.bits == 8 or form.group == GROUP
    other = torch_format(form.bits if fits else 8, form.rows, form.columns, form.dtype)
    new = other.empty(torch.device("cpu"))
    for first in range(0, form.rows, STEP):
        last = min(first + STEP, form.rows)
        if fits:
            other.place(new, first, *form.codes(held, first, last))
        else:
            other.fill(new, first, form.dense(held, first, last, torch.float32))
    return other, new


def panelled(form: Format, held: Held) -> dict[str, Tensor]:
    """The same numbers in panels; what is not in PyTorch's layout stays as it is."""
    if not isinstance(form, TorchInt8 | TorchInt4):
        return {}
    panels = Panels(form.rows, form.columns, form.dtype, 8 if isinstance(form, TorchInt8) else 4)
    new = panels.empty(torch.device("cpu"))
    for first in range(0, form.rows, STEP):
        panels.place(new, first, *form.codes(held, first, min(first + STEP, form.rows)))
    return new


class TorchInt8(Format):
    """Codes row by row [rows, columns], a scale for each row."""

    def empty(self, device: torch.device) -> dict[str, Tensor]:
        codes = torch.empty(self.rows, self.columns, dtype=torch.int8, device=device)
        return {"weight": codes, "scales": torch.empty(self.rows, device=device)}

    def fill(self, held: Mapping[str, Tensor], first: int, part: Tensor) -> None:
        self.place(held, first, *quantize8(part))

    def place(self, held: Mapping[str, Tensor], first: int, codes: Tensor, scales: Tensor) -> None:
        """Rows that are quantized already."""
        held["weight"][first : first + len(codes)] = codes
        held["scales"][first : first + len(codes)] = scales

    def codes(self, held: Held, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Rows as `place` takes them."""
        weight, scales = weight_and_scales(held)
        return weight[first:last], scales[first:last]

    def dense(self, held: Held, first: int, last: int, dtype: torch.dtype) -> Tensor:
        return numbers(*self.codes(held, first, last), dtype)

    def product(self, held: Held, x: Tensor) -> Tensor:
        if len(x) > FEW or self.columns % 16 or torch.is_grad_enabled():  # which PyTorch's does not check
            return self.by_blocks(held, x)
        codes, scales = self.codes(held, 0, self.rows)
        y = aten._weight_int8pack_mm(x.contiguous(), codes, scales.to(x.dtype))
        return y if held["bias"] is None else y + held["bias"]

    def lookup(self, held: Held, ids: Tensor) -> Tensor:
        weight, scales = weight_and_scales(held)
        return numbers(weight[ids], scales[ids], self.dtype)


class TorchInt4(Format):
    """Codes as `_weight_int4pack_mm_for_cpu` wants them, scales and zeros [columns / GROUP, rows, 2]."""

    def empty(self, device: torch.device) -> dict[str, Tensor]:
        codes = torch.empty(self.rows, self.columns // 2, dtype=torch.uint8, device=device)
        scales = torch.zeros(self.columns // GROUP, self.rows, 2, dtype=torch.bfloat16, device=device)
        return {"weight": codes, "scales": scales}

    def fill(self, held: Mapping[str, Tensor], first: int, part: Tensor) -> None:
        self.place(held, first, *quantize4(part))

    def place(self, held: Mapping[str, Tensor], first: int, codes: Tensor, scales: Tensor) -> None:
        """Rows that are quantized already."""
        last = first + len(codes)
        held["weight"][first:last] = aten._convert_weight_to_int4pack_for_cpu(codes.int() + 8, 1)
        held["scales"][:, first:last, 0] = scales.T

    def codes(self, held: Held, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Rows as `place` takes them: the packed codes are the product with one."""
        weight, scales = weight_and_scales(held)
        ones = torch.zeros(self.columns // GROUP, last - first, 2)
        ones[..., 0] = 1
        codes = torch.empty(last - first, self.columns, dtype=torch.int8)
        for column in range(0, self.columns, STEP):
            x = torch.zeros(min(STEP, self.columns - column), self.columns)
            x.diagonal(column).fill_(1)
            own = aten._weight_int4pack_mm_for_cpu(x, weight[first:last], GROUP, ones)
            codes[:, column : column + len(x)] = own.T.round()
        return codes, scales[:, first:last, 0].T

    def dense(self, held: Held, first: int, last: int, dtype: torch.dtype) -> Tensor:
        return numbers(*self.codes(held, first, last), dtype)

    def product(self, held: Held, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.by_blocks(held, x)
        weight, scales = weight_and_scales(held)
        y = aten._weight_int4pack_mm_for_cpu(x.contiguous(), weight, GROUP, scales.to(x.dtype))
        return y if held["bias"] is None else y + held["bias"]
