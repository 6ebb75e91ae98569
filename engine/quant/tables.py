"""nf4 and fp4 in panels, for our kernels: the codes and scales of bitsandbytes, in the layout of int4.

A code stands for one of 16 numbers in [-1, 1]. The float32 scales, one per 64 weights of a row, are
[panels, groups, 32 rows] end to end, followed by the table of the 16 numbers. With `double` the scales are dequantized,
so that a weight takes 4.5 bits in both; the scales of scales are kept, from which saving finds the 8-bit codes again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import kernels
from engine.kernels import gpu
from engine.quant.base import Format, Tensors, weight_and_scales
from engine.quant.bitsandbytes import BLOCK, Bnb4
from engine.quant.panels import PANEL, Panels, from_panels, to_panels
from engine.runtime.memory import use_large_pages

TABLE = 16  # numbers
STEP = 2048  # rows that are converted at once, a multiple of the rows of a panel


def is_supported(device: torch.device) -> bool:
    """Whether there are kernels for panels of nf4 and fp4 on this device."""
    return (device.type == "cpu" and kernels.available()) or gpu.for_device(device) is not None


def in_panels(weight_format: Format | None) -> TablePanels | None:
    """The same matrix in panels; None if it is not nf4 or fp4, or not whole panels."""
    if not isinstance(weight_format, Bnb4) or weight_format.rows % PANEL or weight_format.columns % BLOCK:
        return None
    shape = weight_format.rows, weight_format.columns, weight_format.dtype
    return TablePanels(*shape, 4, BLOCK, weight_format.kind, weight_format.double)


@dataclass(frozen=True)
class TablePanels(Panels):
    """A matrix that bitsandbytes quantized to nf4 or fp4, in panels. Rows are whole panels, columns whole blocks."""

    kind: str = "nf4"
    double: bool = False

    @property
    def origin(self) -> Bnb4:
        """The format of the same matrix in bitsandbytes' layout."""
        return Bnb4(self.rows, self.columns, self.dtype, self.kind, self.double)

    def empty(self, device: torch.device) -> dict[str, Tensor]:
        count = self.rows * self.columns
        tensors = self.origin.empty(device) if self.double else {}
        shape = (self.rows // PANEL, self.columns // 8, PANEL, 4)
        tensors["weight"] = torch.empty(shape, dtype=torch.uint8, device=device)
        tensors["scales"] = torch.empty(count // BLOCK + TABLE, device=device)
        return tensors

    def begin(self, device: torch.device) -> dict[str, Tensor]:
        return self.origin.begin(device)

    def fill(self, tensors: Mapping[str, Tensor], first: int, part: Tensor) -> None:
        self.origin.fill(tensors, first, part)

    def finish(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.from_origin(self.origin.finish(tensors))

    def from_origin(self, tensors: Tensors) -> dict[str, Tensor]:
        """Convert a matrix from bitsandbytes' layout, on its device."""
        packed = tensors["weight"]
        assert packed is not None
        new = {name: use_large_pages(tensor) for name, tensor in self.empty(packed.device).items()}
        new |= {
            name: tensor for name in ("nested_scales", "nested_offset") if (tensor := tensors.get(name)) is not None
        }
        state, packed = self.origin.state(tensors, 0, self.rows), packed.view(self.rows, -1)
        for first in range(0, self.rows, STEP):
            part = packed[first : first + STEP]
            codes = torch.stack((part >> 4, part & 15), dim=2).flatten(1).view(torch.int8) - 8
            new["weight"][first // PANEL : (first + STEP) // PANEL] = to_panels(codes, 4)
        by_row = state.absmax.view(-1, PANEL, self.columns // BLOCK)
        torch.cat((by_row.transpose(1, 2).flatten(), state.code), out=new["scales"])
        return new

    def to_origin(self, tensors: Tensors) -> dict[str, Tensor]:
        """Convert a matrix to bitsandbytes' layout, to the last bit: the inverse of `from_origin`."""
        weight = weight_and_scales(tensors)[0]
        new = self.origin.empty(weight.device)
        packed = new["weight"].view(self.rows, -1)
        for first in range(0, self.rows, STEP):
            codes = (from_panels(weight[first // PANEL : (first + STEP) // PANEL], 4) + 8).view(torch.uint8)
            packed[first : first + STEP] = codes[:, ::2] << 4 | codes[:, 1::2]
        scales = self.group_scales(tensors, 0, self.rows).flatten()
        if not self.double:
            return {**new, "scales": scales.contiguous()}
        new |= {name: tensor for name in ("nested_scales", "nested_offset") if (tensor := tensors[name]) is not None}
        return {**new, "scales": self.origin.scale_codes(new, scales)}

    def group_scales(self, tensors: Tensors, first: int, last: int) -> Tensor:
        """Scales of rows `first` to `last` [last - first, groups]."""
        scales = weight_and_scales(tensors)[1][:-TABLE].view(-1, self.columns // BLOCK, PANEL)
        return scales[first // PANEL : -(-last // PANEL)].transpose(1, 2).flatten(0, 1)[: last - first]

    def codes(self, tensors: Tensors, first: int, last: int) -> tuple[Tensor, Tensor]:
        """The numbers of rows `first` to `last` before scaling, and their scales."""
        weight, scales = weight_and_scales(tensors)
        numbers = scales[-TABLE:]
        codes = from_panels(weight[first // PANEL : -(-last // PANEL)], 4)[: last - first]
        return numbers[codes.int() + 8], self.group_scales(tensors, first, last)

    def lookup(self, tensors: Tensors, ids: Tensor) -> Tensor:
        return Format.lookup(self, tensors, ids)  # not implemented: embeddings are not quantized
