"""The header of a GGUF file: metadata and the descriptions of the tensors.

The format (github.com/ggml-org/ggml, docs/gguf.md), little-endian: "GGUF", version, number of tensors, number of
metadata entries, the entries, the descriptions, padding, the tensors' bytes. Nothing in it is trusted: every count,
length and offset is compared with the size of the file before anything is allocated.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from engine.checkpoints.tensor_file import TensorFile
from engine.runtime.errors import BareloopError, quote

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_ENTRIES = 2**16  # metadata entries or tensors; real files have a few hundred
MAX_ITEMS = 2**22  # of an array; the largest vocabularies have 262,144 tokens
MAX_VALUE = 2**25  # bytes of one value; the largest vocabularies have 4 MB of strings
MAX_HEADER = 2**26  # bytes
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 2**20  # bytes
STRING, ARRAY = 8, 9
REMOVED_KINDS = (31, 32, 33, 36, 37, 38)  # Q4_0 and IQ4_NL in the layouts of single processors
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: its shape as in PyTorch (GGUF lists it reversed), ggml's type, and the range of its bytes."""

    shape: tuple[int, ...]
    kind: int
    start: int
    nbytes: int


class GGUFFile(TensorFile):
    """One file with its checked header."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            with path.open("rb") as file:
                self.metadata, self.tensors = _Header(self, file).read()
        except OSError as error:
            raise BareloopError(f"cannot read {path}: {error.strerror}") from error


class _Header:
    """Reads a file's header from its beginning."""

    def __init__(self, owner: TensorFile, file: BinaryIO) -> None:
        self.owner = owner
        self.file = file
        self.position = 0

    def read(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        """The metadata, and the descriptions of the tensors."""
        path = self.owner.path
        if self.file.read(len(MAGIC)) != MAGIC:
            raise BareloopError(f"{path} is not a GGUF file: it does not begin with {MAGIC.decode()}")
        self.position = len(MAGIC)
        version = self._number("I")
        if version not in VERSIONS:
            big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            reason = "it is big-endian" if big_endian else f"its version is {version}; known: 2, 3"
            raise BareloopError(f"{path} cannot be read: {reason}; convert the model again")
        count, entries = self._count(24, MAX_ENTRIES, "tensors"), self._count(12, MAX_ENTRIES, "metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string()
            metadata[key] = self._value(self._number("I"), key)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            self._refuse(f"its alignment is {quote(alignment)}")
        descriptions = [self._description() for _ in range(count)]
        data_start = -(-self.position // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in descriptions:
            nbytes = self._nbytes(name, shape, kind)
            if offset % alignment or name in tensors:
                self._refuse(f"the description of tensor {quote(name)} is malformed")
            if data_start + offset + nbytes > self.owner.size:
                raise self.owner.truncated(f"tensor {quote(name)} ends at byte {data_start + offset + nbytes:,}")
            tensors[name] = TensorInfo(shape, kind, data_start + offset, nbytes)
        return metadata, tensors

    def _description(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._string(), self._number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self._refuse(f"tensor {quote(name)} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        if 0 in shape or math.prod(shape) >= 2**63:
            self._refuse(f"tensor {quote(name)} has the shape {quote(list(shape))}")
        return name, shape, self._number("I"), self._number("Q")

    def _nbytes(self, name: str, shape: tuple[int, ...], kind: int) -> int:
        values, size = block_size(kind, f"{self.owner.path}: tensor {quote(name)}")
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
        if count * item_size > self.owner.size - self.position:
            raise self.owner.truncated(f"it claims {count:,} {what}")
        return count

    def _bytes(self, count: int) -> bytes:
        end = self.position + count
        if end <= self.owner.size and (count > MAX_VALUE or end > MAX_HEADER):
            self._refuse(f"its header continues to byte {end:,}")
        content = self.file.read(count) if end <= self.owner.size else b""
        if len(content) < count:
            raise self.owner.truncated(f"its header continues to byte {end:,}")
        self.position = end
        return content

    def _refuse(self, detail: str) -> NoReturn:
        raise BareloopError(f"{self.owner.path} is damaged: {detail}; download it again")


def block_size(kind: int, what: str) -> tuple[int, int]:
    """Number of values in a block of ggml's type `kind`, and its bytes.

    Raises `BareloopError` for a type that the package `gguf` does not dequantize.
    """
    if kind in REMOVED_KINDS:
        raise BareloopError(f"{what} has type {kind}, which llama.cpp no longer has; convert the model again")
    sizes = _block_size(kind)
    if sizes is None:
        raise BareloopError(f"{what} has the unknown type {kind}; a newer version of the package gguf may know it")
    return sizes


@cache
def _block_size(kind: int) -> tuple[int, int] | None:
    import numpy

    gguf = package()
    try:
        known = gguf.GGMLQuantizationType(kind)
        values, size = gguf.GGML_QUANT_SIZES[known]
        dtype = {"F32": "<f4", "F16": "<f2"}.get(known.name, "u1")
        gguf.quants.dequantize(numpy.zeros((1, size), "u1").view(dtype), known)
    except (ValueError, KeyError, NotImplementedError):
        return None
    return int(values), int(size)


def package() -> Any:
    """The package `gguf`. Raises `BareloopError` with the extra to install if it is missing."""
    try:
        import gguf
    except ImportError:
        raise BareloopError("reading GGUF files needs the package gguf: pip install 'bareloop[gguf]'") from None
    return gguf


def is_gguf(path: Path) -> bool:
    """Whether a file begins with GGUF's magic number, whatever its name is.

    Raises `BareloopError` if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except FileNotFoundError:
        return False
    except OSError as error:
        raise BareloopError(f"cannot read {path}: {error.strerror}") from error
