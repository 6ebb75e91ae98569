"""Tensors in a file: their place and shape are known from its header, their values are read when they are needed."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from engine.runtime.errors import BareloopError

BUFFER = 16 * 2**20  # bytes converted or compared at once


class TensorFile:
    """A file with tensors: its size, and access to its bytes. Raises `BareloopError` if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.size = path.stat().st_size
        except OSError as error:
            raise BareloopError(f"cannot read {path}: {error.strerror}") from error

    @cached_property
    def mapped(self) -> mmap.mmap:
        """The whole file mapped into memory, copy on write."""
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def read(self, start: int, into: memoryview) -> None:
        """Read bytes from `start` on into a buffer. They are not mapped, so the file takes no memory of the process."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            done = 0
            while done < len(into):
                count = file.readinto(into[done:])
                if not count:
                    raise self.truncated(f"it ends at byte {start + done:,}")
                done += count

    def truncated(self, detail: str) -> BareloopError:
        """The error for a file that ends before what its header describes."""
        return BareloopError(
            f"{self.path} is truncated or damaged ({detail}; it has {self.size:,} bytes); download it again"
        )


@dataclass(frozen=True)
class Stored:
    """One tensor in a file, starting at byte `start`."""

    file: TensorFile
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def aligned(self) -> bool:
        """Whether it can be used in the mapped file."""
        return self.start % self.dtype.itemsize == 0 and math.prod(self.shape) > 0

    def view(self) -> Tensor:
        """The tensor in the mapped file (page cache). Writing to it does not change the file."""
        count = math.prod(self.shape)
        return torch.frombuffer(self.file.mapped, dtype=self.dtype, count=count, offset=self.start).view(self.shape)

    def row_range(self, first: int, last: int) -> Self:
        """Rows `first` to `last` of the tensor."""
        row = self.nbytes // self.shape[0]
        return replace(self, shape=(last - first, *self.shape[1:]), start=self.start + first * row)

    def equals(self, other: Stored) -> bool:
        """Whether another tensor has the same dtype, shape and values."""
        if type(self) is not type(other) or (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        ours, theirs = torch.empty(BUFFER, dtype=torch.uint8), torch.empty(BUFFER, dtype=torch.uint8)
        for first in range(0, self.nbytes, BUFFER):
            size = min(BUFFER, self.nbytes - first)
            for stored, buffer in ((self, ours), (other, theirs)):
                stored.file.read(stored.start + first, _bytes(buffer[:size]))
            if not torch.equal(ours[:size], theirs[:size]):
                return False
        return True

    def read_into(self, target: Tensor) -> None:
        """Read into `target`, contiguous and of this shape, with conversion between dtypes or devices."""
        if target.device.type == "cpu" and target.dtype == self.dtype:
            self.file.read(self.start, _bytes(target))
            return
        flat = target.view(-1)
        buffer = torch.empty(max(1, min(BUFFER // self.dtype.itemsize, len(flat))), dtype=self.dtype)
        for first in range(0, len(flat), len(buffer)):
            piece = buffer[: len(flat) - first]
            self.file.read(self.start + first * self.dtype.itemsize, _bytes(piece))
            flat[first : first + len(piece)].copy_(piece)


@dataclass(frozen=True)
class Decoded(Stored):
    """A tensor whose values are computed while it is read. Its first row is row `first` of the whole tensor."""

    first: int = field(default=0, kw_only=True)

    @property
    def aligned(self) -> bool:
        return False

    def row_range(self, first: int, last: int) -> Self:
        return replace(self, shape=(last - first, *self.shape[1:]), first=self.first + first)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data
