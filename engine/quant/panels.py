"""int8 and int4: our own formats, in one memory layout for every device.

    int8   one scale per row (float32); codes -127 to 127
    int4   one scale per group of 32 or 16 weights of a row (bfloat16); codes -8 to 7, the best of a few scales

32 rows are stored side by side as a panel, [panels, lines, 32 rows, 4 bytes]. A line holds the next four columns of
all 32 rows, or the next eight in 4 bits, so a kernel reads one contiguous stream and needs no sum across lanes.
The kernels multiply pairs of 16-bit columns, or four 8-bit columns, at once: therefore the 4 bytes of int8 are columns
0 2 1 3, which gives pairs when each 16-bit word is split into even and odd bytes. In 4 bits the lower halves of the
4 bytes are columns 0 1 2 3, the upper halves columns 4 5 6 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from engine import kernels
from engine.kernels import gpu
from engine.quant.base import Format, Tensors, kernel_product, weight_and_scales

PANEL = 32  # rows
MAX_GPU_ROWS = 32  # of x that one kernel multiplies on a GPU; for more rows the matrix is dequantized
GROUP, END_GROUP = 32, 16  # 4-bit weights that share a scale: in the blocks, and in the embedding and the head
# Candidate scales of int4: the largest weight of a group divided by these codes. Beyond -8 that weight is clipped, and
# the others are served better. The best of them, then the scale with the least squared error for its codes: together
# within 0.2 % of the error of the best of ninety scales.
LARGEST_CODES = (-8.6, -8.4, -8.2, -8.0, -7.8, -7.2, -7.0, 6.0)


def quantize8(part: Tensor) -> tuple[Tensor, Tensor]:
    """part [n, k] -> codes [n, k] (int8) and one scale per row [n] (float32)."""
    scales = part.abs().amax(dim=1) / 127
    return (part * _inverse(scales)[:, None]).round_().to(torch.int8), scales


def quantize4(part: Tensor, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """part [n, k] -> codes [n, k] (int8, -8 to 7) and scales [n, k / group] (bfloat16, of either sign)."""
    groups = torch.unflatten(part, 1, (-1, group))
    low, high = groups.amin(dim=2), groups.amax(dim=2)
    largest = torch.where(high > -low, high, low)
    codes, scales = torch.zeros_like(groups), torch.full_like(low, torch.nan)
    best_error = torch.full_like(low, torch.inf)
    for code in (*LARGEST_CODES, None):
        if code is None:
            candidate = ((groups * codes).sum(dim=2) / codes.square().sum(dim=2)).bfloat16().float()
        else:
            candidate = (largest / code).bfloat16().float()
        rounded = (groups * _inverse(candidate)[..., None]).round_().clamp_(-8, 7)
        error = torch.addcmul(groups, rounded, candidate[..., None], value=-1).square_().sum(dim=2)
        better = error < best_error
        best_error, scales = torch.where(better, error, best_error), torch.where(better, candidate, scales)
        codes = torch.where(better[..., None], rounded, codes)
    return codes.to(torch.int8).flatten(1), scales.bfloat16()


def _inverse(scales: Tensor) -> Tensor:
    """1 / scales, or 0 where that overflows or a scale is 0."""
    return torch.where(scales.abs() < torch.finfo(torch.float32).tiny, 0, 1 / scales)


def dequantize(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """codes [n, k] times scales [n] or [n, groups] -> [n, k]."""
    by_group = scales[:, None] if scales.dim() == 1 else scales
    groups = torch.unflatten(codes, 1, (by_group.shape[1], -1))
    return (groups * by_group.float()[..., None]).flatten(1).to(dtype)


def to_panels(codes: Tensor, bits: int) -> Tensor:
    """Codes [n, k] -> [panels, lines, 32, 4]; the last panel is filled up with zero rows."""
    codes = torch.unflatten(F.pad(codes, (0, 0, 0, -len(codes) % PANEL)), 0, (-1, PANEL))
    if bits == 8:
        return torch.unflatten(codes, 2, (-1, 2, 2)).permute(0, 2, 1, 4, 3).flatten(3).contiguous()
    low, high = torch.unflatten((codes + 8).view(torch.uint8), 2, (-1, 2, 4)).unbind(3)
    return (low | high << 4).transpose(1, 2).contiguous()


def from_panels(panels: Tensor, bits: int) -> Tensor:
    """The inverse of `to_panels` -> codes [32 panels, k] (int8)."""
    if bits == 8:
        return torch.unflatten(panels, 3, (2, 2)).permute(0, 2, 1, 4, 3).flatten(2).flatten(0, 1)
    codes = torch.stack((panels & 15, panels >> 4), dim=3).transpose(1, 2)  # [panels, 32, lines, 2, 4]
    return (codes.flatten(2).view(torch.int8) - 8).flatten(0, 1)


@dataclass(frozen=True)
class Panels(Format):
    """A matrix in panels. 8 bits: columns are a multiple of 4. 4 bits: whole groups and whole panels."""

    bits: int = 8
    group: int = GROUP

    fused = True

    def empty(self, device: torch.device) -> dict[str, Tensor]:
        count, lines = -(-self.rows // PANEL), self.columns * self.bits // 32
        if self.bits == 8:
            codes = torch.empty(count, lines, PANEL, 4, dtype=torch.int8, device=device)
            return {"weight": codes, "scales": torch.empty(self.rows, device=device)}
        codes = torch.empty(count, lines, PANEL, 4, dtype=torch.uint8, device=device)
        groups = (count, self.columns // self.group, PANEL)
        return {"weight": codes, "scales": torch.empty(groups, dtype=torch.bfloat16, device=device)}

    def fill(self, tensors: Mapping[str, Tensor], first: int, part: Tensor) -> None:
        ops = kernels.for_device(part.device)
        if ops is not None:
            ops.quantize(part, tensors["weight"], tensors["scales"], first)
            return
        codes, scales = quantize8(part) if self.bits == 8 else quantize4(part, self.group)
        self.set_codes(tensors, first, codes, scales)

    def set_codes(self, tensors: Mapping[str, Tensor], first: int, codes: Tensor, scales: Tensor) -> None:
        """Store rows that are already quantized."""
        panels = slice(first // PANEL, -(-(first + len(codes)) // PANEL))
        tensors["weight"][panels] = to_panels(codes, self.bits)
        if self.bits == 8:
            tensors["scales"][first : first + len(codes)] = scales
        else:
            tensors["scales"][panels] = torch.unflatten(scales, 0, (-1, PANEL)).transpose(1, 2)

    def codes(self, tensors: Tensors, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Codes and scales of rows `first` to `last`, as `set_codes` takes them."""
        weight, scales = weight_and_scales(tensors)
        panels = slice(first // PANEL, -(-last // PANEL))
        codes = from_panels(weight[panels], self.bits)[: last - first]
        if self.bits == 8:
            return codes, scales[first:last]
        return codes, scales[panels].transpose(1, 2).flatten(0, 1)[: last - first]

    def dense(self, tensors: Tensors, first: int, last: int, dtype: torch.dtype) -> Tensor:
        weight, scales = weight_and_scales(tensors)
        ops = kernels.for_device(weight.device)
        if ops is not None:
            like = torch.empty(0, dtype=dtype if dtype in kernels.DTYPES else torch.float32)
            return ops.dequantize(weight, scales, first, last, like).to(dtype)
        if (operators := gpu.for_device(weight.device)) is not None and dtype in gpu.DTYPES:
            return operators.dequantize(weight, scales, first, last, dtype)
        return dequantize(*self.codes(tensors, first, last), dtype)

    def product(self, tensors: Tensors, x: Tensor) -> Tensor:
        y = kernel_product(tensors, x)
        if y is not None:
            return y
        operators = gpu.for_rows(x) if 0 < len(x) <= MAX_GPU_ROWS else None
        if operators is not None:
            return operators.linear(x, *weight_and_scales(tensors), self.rows, tensors["bias"])
        return self.product_by_blocks(tensors, x)

    def lookup(self, tensors: Tensors, ids: Tensor) -> Tensor:
        weight, scales = weight_and_scales(tensors)
        if (operators := gpu.for_device(weight.device)) is not None:
            return operators.lookup(weight, scales, ids, self.dtype)
        lines = weight[ids // PANEL, :, ids % PANEL]  # [N, lines, 4]
        if self.bits == 8:
            codes = torch.unflatten(lines, 2, (2, 2)).transpose(2, 3).flatten(1)
            return dequantize(codes, scales[ids], self.dtype)
        codes = torch.stack((lines & 15, lines >> 4), dim=2).flatten(1).view(torch.int8) - 8
        return dequantize(codes, scales[ids // PANEL, :, ids % PANEL], self.dtype)
