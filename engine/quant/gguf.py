"""The blocks of GGUF files, kept as they are: a matrix represents exactly the file's numbers, in the file's size.

A block is 32 or 256 columns of a row: one or two float16 numbers, perhaps 8-bit scales of its groups, and codes. 32
rows are a panel. Of a panel, the same block of all rows is one record, [units, 32 rows, bytes of a unit]:

    float16    the scale d; Q4_1: then the minimum; Q4_K, Q5_K: then the scale of the groups' minima (units of 2 bytes)
    scales     of the groups; Q4_K, Q5_K: then the groups' minima, both unpacked from 6 bits (units of 1 byte)
    codes      the file's bytes in the file's order: in Q5_K first the fifth bits, in Q6_K last two bits (4 bytes)

A kernel reads a panel as one stream, with 4 bytes of each of 32 rows side by side, and needs no sum across lanes. The
records of all panels lie end to end. Stacked projections may have different types: a matrix is a list of parts, end to
end. The tensor "scales" has the type, as GGUF numbers it, and the rows of each part; the scales are in the records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine import kernels
from engine.quant.base import Format, Tensors, kernel_product, weight_and_scales
from engine.quant.panels import PANEL

Q4_0, Q4_1, Q5_0, Q8_0, Q4_K, Q5_K, Q6_K = 2, 3, 6, 8, 12, 13, 14  # as GGUF numbers them
UNPACKED = {Q5_0: Q8_0}  # types whose codes are stored as those of another type


@dataclass(frozen=True)
class BlockType:
    """Columns of a block, and what its record has of each row."""

    columns: int
    halves: int  # float16 numbers
    scales: int  # 8-bit scales and minima
    codes: int  # bytes

    @property
    def nbytes(self) -> int:
        """Bytes of a record."""
        return PANEL * (2 * self.halves + self.scales + self.codes)

    def fields(self, records: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of records [..., bytes]: float16 [..., halves, 32], scales [..., n, 32], codes [..., n, 32, 4]."""
        sizes = [PANEL * 2 * self.halves, PANEL * self.scales, PANEL * self.codes]
        halves, scales, codes = torch.split(records, sizes, dim=-1)
        return (
            torch.unflatten(halves.view(torch.float16), -1, (self.halves, PANEL)),
            torch.unflatten(scales, -1, (self.scales, PANEL)),
            torch.unflatten(codes, -1, (self.codes // 4, PANEL, 4)),
        )


TYPES = {
    Q4_0: BlockType(32, 1, 0, 16),
    Q4_1: BlockType(32, 2, 0, 16),
    Q8_0: BlockType(32, 1, 0, 32),
    Q4_K: BlockType(256, 2, 16, 128),
    Q5_K: BlockType(256, 2, 16, 160),
    Q6_K: BlockType(256, 1, 16, 192),
}


def unpack(kind: int, blocks: Any) -> tuple[Any, Any, Any]:
    """Blocks [..., bytes] as in a file -> numbers of 2, 1 and 4 bytes, as records have them (arrays of numpy)."""
    import numpy

    scales = blocks[..., :0]
    if kind == Q6_K:
        codes, scales, halves = blocks[..., :192], blocks[..., 192:208], blocks[..., 208:]
    elif kind in (Q4_K, Q5_K):
        halves, codes = blocks[..., :4], blocks[..., 16:]
        low, minima, rest = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
        parts = (low & 63, rest & 15 | low >> 2 & 48, minima & 63, rest >> 4 | minima >> 2 & 48)
        scales = numpy.concatenate(parts, axis=-1)
    elif kind == Q5_0:
        halves, packed = blocks[..., :2], blocks[..., 6:]
        fifth = numpy.unpackbits(blocks[..., 2:6], axis=-1, bitorder="little")
        codes = (numpy.concatenate((packed & 15, packed >> 4), axis=-1) | fifth << 4) - 16
    else:
        size = 2 * TYPES[kind].halves
        halves, codes = blocks[..., :size], blocks[..., size:]
    return halves.view("<i2"), scales, codes.view("<i4")


def decode(kind: int, halves: Tensor, scales: Tensor, codes: Tensor) -> Tensor:
    """The numbers [..., columns] (float32) of blocks whose fields are as `unpack` returns them."""
    d = halves[..., :1].float()
    if kind == Q8_0:
        return d * codes.view(torch.int8).float()
    if kind in (Q4_0, Q4_1):
        numbers = torch.cat((codes & 15, codes >> 4), dim=-1).float()
        return d * (numbers - 8) if kind == Q4_0 else d * numbers + halves[..., 1:].float()
    if kind == Q6_K:
        packed, bits = torch.unflatten(codes[..., :128], -1, (2, 64)), torch.unflatten(codes[..., 128:], -1, (2, 1, 32))
        low = torch.cat((packed & 15, packed >> 4), dim=-1).flatten(-2)
        high = (bits >> torch.arange(0, 8, 2, dtype=torch.uint8)[:, None] & 3).flatten(-3)
        numbers = torch.unflatten((low | high << 4).float() - 32, -1, (16, 16))
        return ((d * scales.view(torch.int8).float())[..., None] * numbers).flatten(-2)
    packed = torch.unflatten(codes[..., -128:], -1, (4, 32))
    low = torch.stack((packed & 15, packed >> 4), dim=-2).flatten(-3, -2)  # [..., 8, 32]
    if kind == Q5_K:
        low |= (codes[..., None, :32] >> torch.arange(8, dtype=torch.uint8)[:, None] & 1) << 4
    minima = halves[..., 1:].float() * scales[..., 8:].float()
    return ((d * scales[..., :8].float())[..., None] * low.float() - minima[..., None]).flatten(-2)


def choose_format(parts: Sequence[tuple[int, int]], columns: int, dtype: torch.dtype) -> Records | None:
    """The format of a matrix of parts (type, rows); None if a type or shape is not supported."""
    stored = [UNPACKED.get(kind, kind) for kind, _ in parts]
    fits = all(kind in TYPES and columns % TYPES[kind].columns == 0 for kind in stored)
    if not fits or any(rows % PANEL for _, rows in parts[:-1]):
        return None
    return Records(sum(rows for _, rows in parts), columns, dtype, tuple(parts))


@dataclass(frozen=True)
class Records(Format):
    """A matrix of parts (type in the file, rows) below each other. Only the last part may end within a panel."""

    parts: tuple[tuple[int, int], ...] = ()

    fused = True

    def empty(self, device: torch.device) -> dict[str, Tensor]:
        stored = [(UNPACKED.get(kind, kind), rows) for kind, rows in self.parts]
        nbytes = sum(-(-rows // PANEL) * self._panel_bytes(kind) for kind, rows in stored)
        weight = torch.empty(nbytes, dtype=torch.uint8, device=device)
        return {"weight": weight, "scales": torch.tensor(stored, dtype=torch.int64, device=device)}

    def _panel_bytes(self, kind: int) -> int:
        return self.columns // TYPES[kind].columns * TYPES[kind].nbytes

    def _parts(self, weight: Tensor) -> Iterator[tuple[int, int, int, Tensor]]:
        """Each part: its type in the file, first and last row, and records [panels, blocks, bytes]."""
        first = start = 0
        for kind, rows in self.parts:
            stored = UNPACKED.get(kind, kind)
            size = -(-rows // PANEL) * self._panel_bytes(stored)
            records = weight[start : start + size].view(-1, self.columns // TYPES[stored].columns, TYPES[stored].nbytes)
            yield kind, first, first + rows, records
            first, start = first + rows, start + size

    def fill(self, tensors: Mapping[str, Tensor], first: int, part: Tensor) -> None:
        """Store rows from `first`, a multiple of 32, on: the file's bytes [n, bytes per row], all of one part."""
        for kind, begin, end, records in self._parts(tensors["weight"]):
            if not begin <= first < end:
                continue
            block_type = TYPES[UNPACKED.get(kind, kind)]
            if len(part) % PANEL:
                part = F.pad(part, (0, 0, 0, -len(part) % PANEL))
            blocks = part.numpy()  # torch copies such bytes one by one
            blocks = blocks.reshape(len(blocks), self.columns // block_type.columns, -1)
            target = records[(first - begin) // PANEL :][: len(blocks) // PANEL].numpy()
            start = 0
            for units in unpack(kind, blocks):  # [n, blocks, units]
                stop = start + PANEL * units.itemsize * units.shape[2]
                field = target[..., start:stop].view(units.dtype).reshape(*target.shape[:2], units.shape[2], PANEL)
                field[...] = units.reshape(len(target), PANEL, *units.shape[1:]).transpose(0, 2, 3, 1)
                start = stop

    def dense(self, tensors: Tensors, first: int, last: int, dtype: torch.dtype) -> Tensor:
        weight, scales = weight_and_scales(tensors)
        ops = kernels.for_device(weight.device)
        if ops is not None:
            like = torch.empty(0, dtype=dtype if dtype in kernels.DTYPES else torch.float32)
            return ops.decode_rows(weight, scales, torch.arange(first, last), like).to(dtype)
        pieces = [
            self._rows(kind, records, torch.arange(max(first - begin, 0), min(last, end) - begin))
            for kind, begin, end, records in self._parts(weight)
            if begin < last and first < end
        ]
        return torch.cat(pieces).to(dtype)

    def _rows(self, kind: int, records: Tensor, ids: Tensor) -> Tensor:
        """Rows of a part -> [N, columns] (float32)."""
        stored = UNPACKED.get(kind, kind)
        halves, scales, codes = (
            field[ids // PANEL, :, :, ids % PANEL].flatten(2) for field in TYPES[stored].fields(records)
        )
        return decode(stored, halves, scales, codes).flatten(1)

    def product(self, tensors: Tensors, x: Tensor) -> Tensor:
        y = kernel_product(tensors, x)
        return self.product_by_blocks(tensors, x) if y is None else y

    def lookup(self, tensors: Tensors, ids: Tensor) -> Tensor:
        weight, scales = weight_and_scales(tensors)
        ops = kernels.for_device(weight.device)
        if ops is not None and self.dtype in kernels.DTYPES:
            return ops.decode_rows(weight, scales, ids.contiguous(), torch.empty(0, dtype=self.dtype))
        ((kind, _, _, records),) = self._parts(weight)
        return self._rows(kind, records, ids).to(self.dtype)
