"""The header of a GGUF file: metadata and the descriptions of the tensors.

The format (github.com/ggml-org/ggml, docs/gguf.md), little-endian: "GGUF", version, number of tensors, number of
metadata entries, the entries, the descriptions, padding, the tensors' bytes. Nothing in it is trusted: every count,
length and offset is compared with the size of the file before anything is allocated.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from engine.runtime.errors import BareloopError, quote

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_ENTRIES = 2**16  # metadata entries or tensors; real files have a few hundred
MAX_ITEMS = 2**22  # of an array; the largest vocabularies have 262,144 tokens
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 2**20  # bytes
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: its shape as in PyTorch (GGUF lists it reversed), ggml's type, and the range of its bytes."""

    shape: tuple[int, ...]
    kind: int
    start: int
    nbytes: int


class GGUFFile:
    """One file: its checked header, and access to its bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = path.stat().st_size
                if file.read(4) != MAGIC:
                    raise BareloopError(f"{path} is not a GGUF file: it does not begin with {MAGIC.decode()}")
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise BareloopError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
        self._position = len(MAGIC)
        version = self._number("I")
        if version not in VERSIONS:
            big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            reason = "it is big-endian" if big_endian else f"its version is {version}; known: 2, 3"
            raise BareloopError(f"{path} cannot be read: {reason}; convert the model again")
        tensors, entries = self._count(24, MAX_ENTRIES, "tensors"), self._count(12, MAX_ENTRIES, "metadata entries")
        self.metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string()
            self.metadata[key] = self._value(self._number("I"), key)
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            self._refuse(f"its alignment is {quote(alignment)}")
        descriptions = [self._description() for _ in range(tensors)]
        data_start = -(-self._position // alignment) * alignment
        self.tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in descriptions:
            nbytes = self._nbytes(name, shape, kind)
            if offset % alignment or name in self.tensors:
                self._refuse(f"the description of tensor {quote(name)} is malformed")
            if data_start + offset + nbytes > self.size:
                self._truncated(f"tensor {quote(name)} ends at byte {data_start + offset + nbytes:,}")
            self.tensors[name] = TensorInfo(shape, kind, data_start + offset, nbytes)
        self._mapped.close()

    def read(self, start: int, count: int) -> bytearray:
        """Read `count` bytes from `start` on. They are not mapped, so that they do not stay in the process's memory."""
        buffer = bytearray(count)
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            if file.readinto(buffer) != count:
                self._truncated(f"tensor data continues to byte {start + count:,}")
        return buffer

    def _description(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._string(), self._number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self._refuse(f"tensor {quote(name)} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        if 0 in shape or math.prod(shape) >= 2**63:
            self._refuse(f"tensor {quote(name)} has the shape {quote(list(shape))}")
        return name, shape, self._number("I"), self._number("Q")

    def _nbytes(self, name: str, shape: tuple[int, ...], kind: int) -> int:
        values, size = block_size(kind, f"{self.path}: tensor {quote(name)}")
        if shape[-1] % values:
            self._refuse(f"rows of tensor {quote(name)} have {shape[-1]:,} values, not a multiple of {values}")
        return math.prod(shape) // values * size

    def _value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self._string()
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind != ARRAY:
            self._refuse(f"metadata {quote(key)} has type {kind}")
        item = self._number("I")
        if item == STRING:
            return [self._string() for _ in range(self._count(8, MAX_ITEMS, f"items of {quote(key)}"))]
        if item not in SCALARS:
            self._refuse(f"metadata {quote(key)} is an array of type {item}")
        code = SCALARS[item]
        count = self._count(struct.calcsize(code), MAX_ITEMS, f"items of {quote(key)}")
        return list(struct.unpack(f"<{count}{code}", self._bytes(count * struct.calcsize(code))))

    def _string(self) -> str:
        # Errors are replaced: some vocabularies have tokens that are not valid UTF-8.
        return self._bytes(self._number("Q")).decode("utf-8", errors="replace")

    def _number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._bytes(struct.calcsize(f"<{code}")))[0]

    def _count(self, item_size: int, limit: int, what: str) -> int:
        """A number of items that take at least `item_size` bytes each."""
        count = int(self._number("Q"))
        if count > limit:
            self._refuse(f"it claims {count:,} {what}; at most {limit:,} are possible")
        if count * item_size > self.size - self._position:
            self._truncated(f"it claims {count:,} {what}")
        return count

    def _bytes(self, count: int) -> bytes:
        end = self._position + count
        if end > self.size:
            self._truncated(f"its header continues to byte {end:,}")
        content = self._mapped[self._position : end]
        self._position = end
        return content

    def _truncated(self, detail: str) -> NoReturn:
        raise BareloopError(f"{self.path} is truncated ({detail}, the file has {self.size:,}); download it again")

    def _refuse(self, detail: str) -> NoReturn:
        raise BareloopError(f"{self.path} is damaged: {detail}; download it again")


def block_size(kind: int, what: str) -> tuple[int, int]:
    """Number of values in a block of ggml's type `kind`, and its bytes. Raises `BareloopError` for an unknown type."""
    constants = package().constants
    try:
        values, size = constants.GGML_QUANT_SIZES[constants.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise BareloopError(
            f"{what} has the unknown type {kind}; a newer version of the package gguf may know it"
        ) from None
    return int(values), int(size)


def package() -> Any:
    """The package `gguf`. Raises `BareloopError` with the extra to install if it is missing."""
    try:
        import gguf
    except ImportError:
        raise BareloopError("reading GGUF files needs the package gguf: pip install 'bareloop[gguf]'") from None
    return gguf


def is_gguf(path: Path) -> bool:
    """Whether a file begins with GGUF's magic number, whatever its name is."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False
