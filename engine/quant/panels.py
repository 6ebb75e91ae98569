"""int8 and int4: our own formats, in one layout for every device.

    int8   a scale for each row (float32): codes -127 to 127
    int4   a scale for each 32 or 16 numbers of a row (bfloat16): codes -8 to 7, by the best of a few scales

32 rows lie side by side as a panel, [panels, lines, 32 rows, 4 bytes]: a line holds the next four columns of all
rows, or eight of 4 bits. The kernels multiply neighbouring columns at once, pairs of 16 bits or fours of 8: so the 4
bytes are columns 0 2 1 3, which leaves pairs when each 16-bit word is split; of 4 bits the lower halves are columns
0 1 2 3, the upper ones 4 5 6 7.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine import kernels
from engine.quant.base import Format, Held, weight_and_scales

PANEL = 32  # rows
GPU_ROWS = 8  # of x; for more, the matrix is made dense on a GPU
GROUP, END_GROUP = 32, 16  # numbers of 4 bits that share a scale, and in the embedding and the head
# The scales that are tried are these shares of the two at which the largest number has the code -8, or 7. A smaller
# one cuts that number and serves the others better; the one with the least squared error is taken: 5 % less of it.
SHRUNK = (1.0, 0.95, 0.9, 0.85)
ENDS = (-8, 7)


def quantize8(part: Tensor) -> tuple[Tensor, Tensor]:
    """part [n, k] -> codes [n, k] (int8) and a scale for each row [n] (float32)."""
    scales = part.abs().amax(dim=1) / 127
    return (part * _inverse(scales)[:, None]).round_().to(torch.int8), scales


def quantize4(part: Tensor, group: int = GROUP) -> tuple[Tensor, Tensor]:
    """part [n, k] -> codes [n, k] (int8, -8 to 7) and scales [n, k / group] (bfloat16, of either sign)."""
    groups = torch.unflatten(part, 1, (-1, group))
    low, high = groups.amin(dim=2), groups.amax(dim=2)
    largest = torch.where(high > -low, high, low)
    least = codes = scales = None
    for share, end in product(SHRUNK, ENDS):
        tried = (largest * (share / end)).bfloat16()
        wide = tried.float()
        rounded = (groups * _inverse(wide)[..., None]).round_().clamp_(-8, 7)
        error = torch.addcmul(groups, rounded, wide[..., None], value=-1).square_().sum(dim=2)
        if least is None or codes is None or scales is None:
            least, codes, scales = error, rounded, tried
            continue
        better = error < least
        least, scales = torch.where(better, error, least), torch.where(better, tried, scales)
        codes = torch.where(better[..., None], rounded, codes)
    assert codes is not None and scales is not None
    return codes.to(torch.int8).flatten(1), scales


def _inverse(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 0, 1 / scales)


def numbers(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """What codes [n, k] stand for; scales [n], or [n, groups]."""
    by_group = scales[:, None] if scales.dim() == 1 else scales
    groups = torch.unflatten(codes, 1, (by_group.shape[1], -1))
    return (groups * by_group.float()[..., None]).flatten(1).to(dtype)


def to_panels(codes: Tensor, bits: int) -> Tensor:
    """Codes [n, k] -> [panels, lines, 32, 4]; rows that fill the last panel up are zeros."""
    codes = torch.unflatten(F.pad(codes, (0, 0, 0, -len(codes) % PANEL)), 0, (-1, PANEL))
    if bits == 8:
        return torch.unflatten(codes, 2, (-1, 2, 2)).permute(0, 2, 1, 4, 3).flatten(3).contiguous()
    low, high = torch.unflatten((codes + 8).view(torch.uint8), 2, (-1, 2, 4)).unbind(3)
    return (low | high << 4).transpose(1, 2).contiguous()


def from_panels(panels: Tensor, bits: int) -> Tensor:
    """What `to_panels` made of codes -> the codes [32 panels, k] (int8)."""
    if bits == 8:
        return torch.unflatten(panels, 3, (2, 2)).permute(0, 2, 1, 4, 3).flatten(2).flatten(0, 1)
    codes = torch.stack((panels & 15, panels >> 4), dim=3).transpose(1, 2)  # [panels, 32, lines, 2, 4]
    return (codes.flatten(2).view(torch.int8) - 8).flatten(0, 1)


@dataclass(frozen=True)
class Panels(Format):
    """A matrix of 8 bits, with a multiple of 4 columns; or of 4 bits, with whole groups and whole panels."""

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

    def fill(self, held: Mapping[str, Tensor], first: int, part: Tensor) -> None:
        ops = kernels.serving(part.device)
        if ops is not None:
            ops.quantize(part, held["weight"], held["scales"], first)
            return
        codes, scales = quantize8(part) if self.bits == 8 else quantize4(part, self.group)
        self.place(held, first, codes, scales)

    def place(self, held: Mapping[str, Tensor], first: int, codes: Tensor, scales: Tensor) -> None:
        """Rows that are quantized already."""
        panels = slice(first // PANEL, -(-(first + len(codes)) // PANEL))
        held["weight"][panels] = to_panels(codes, self.bits)
        if self.bits == 8:
            held["scales"][first : first + len(codes)] = scales
        else:
            held["scales"][panels] = torch.unflatten(scales, 0, (-1, PANEL)).transpose(1, 2)

    def codes(self, held: Held, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Rows as `place` takes them."""
        weight, scales = weight_and_scales(held)
        panels = slice(first // PANEL, -(-last // PANEL))
        codes = from_panels(weight[panels], self.bits)[: last - first]
        if self.bits == 8:
            return codes, scales[first:last]
        return codes, scales[panels].transpose(1, 2).flatten(0, 1)[: last - first]

    def dense(self, held: Held, first: int, last: int, dtype: torch.dtype) -> Tensor:
        weight, scales = weight_and_scales(held)
        ops = kernels.serving(weight.device)
        if ops is not None:
            like = torch.empty(0, dtype=dtype if dtype in kernels.DTYPES else torch.float32)
            return ops.dequantize(weight, scales, first, last, like).to(dtype)
        if (gpu := _gpu(weight)) is not None and first == 0 and last == self.rows:
            return gpu.dequantize(weight, scales, self.rows, dtype)
        return numbers(*self.codes(held, first, last), dtype)

    def product(self, held: Held, x: Tensor) -> Tensor:
        weight, scales = weight_and_scales(held)
        is_half = x.dtype == torch.float16 and x.device.type == "cpu"  # for which there are no kernels of its own
        few = x.float() if is_half and len(x) <= kernels.ROWS else x
        ops = kernels.few(few)
        bias = held["bias"]
        if ops is None and len(x) <= GPU_ROWS and not torch.is_grad_enabled() and (gpu := _gpu(x)) is not None:
            y = gpu.linear(x, weight, scales, self.rows)
            return (y if bias is None else y + bias).to(x.dtype)
        if ops is None:
            return self.by_blocks(held, x)
        return ops.linear(few, weight, scales, bias.float() if is_half and bias is not None else bias).to(x.dtype)

    def lookup(self, held: Held, ids: Tensor) -> Tensor:
        weight, scales = weight_and_scales(held)
        lines = weight[ids // PANEL, :, ids % PANEL]  # [N, lines, 4]
        if self.bits == 8:
            codes = torch.unflatten(lines, 2, (2, 2)).transpose(2, 3).flatten(1)
            return numbers(codes, scales[ids], self.dtype)
        codes = torch.stack((lines & 15, lines >> 4), dim=2).flatten(1).view(torch.int8) - 8
        return numbers(codes, scales[ids // PANEL, :, ids % PANEL], self.dtype)


def _gpu(tensor: Tensor) -> Any:
    """The kernels of an NVIDIA GPU, for tensors that are there."""
    return _gpu_kernels(tensor.device) if tensor.device.type == "cuda" else None


@cache
def _gpu_kernels(device: torch.device) -> Any:
    """They, once they have compiled; None, with a line that says why, where PyTorch's operators have to serve."""
    try:
        from engine.kernels.gpu import panels as gpu

        weight = torch.zeros(1, 8, PANEL, 4, dtype=torch.int8, device=device)
        gpu.linear(torch.ones(1, 32, device=device), weight, torch.ones(PANEL, device=device), PANEL)
    except Exception as error:  # Triton is not here, or has no compiler: it raises a dozen kinds
        told = str(error).strip().partition("\n")[0]
        logging.getLogger("bareloop").warning("quantized weights go without Triton's kernels, slowly (%s)", told)
        return None
    return gpu
