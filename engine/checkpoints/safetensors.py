"""safetensors files, read directly.

The format (github.com/huggingface/safetensors): 8 bytes with the header's length, the header as JSON
(name -> dtype, shape, byte range), then the tensors' bytes. Headers are not trusted.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from engine.checkpoints.tensor_file import Stored, TensorFile
from engine.runtime.errors import BareloopError, quote
from engine.runtime.files import read_json

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_HEADER = 100_000_000  # bytes; the limit of the reference implementation
MAX_DIMENSIONS = 16
HASH_ALL_BYTES = 256 * 2**20  # files up to this size are hashed completely
SAMPLES, SAMPLE_BYTES = 4096, 2**16  # blocks of a larger file that are hashed
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD = 5 * 10**9  # bytes of tensors in one saved file


class SafetensorsFile(TensorFile):
    """One file with its validated header."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            header, self.data_start = self._header()
        except OSError as error:
            raise BareloopError(f"cannot read {path}: {error.strerror}") from error
        self.tensors = {name: self._stored(name, entry) for name, entry in header.items()}

    def _header(self) -> tuple[dict[str, Any], int]:
        if self.size < 8:
            raise self.truncated("it has no header")
        with self.path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(MAX_HEADER, self.size - 8):
                raise self.truncated(f"its header claims {length:,} bytes")
            text = file.read(length)
        try:
            header = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BareloopError(f"{self.path}: its header is not JSON ({error})") from error
        if not isinstance(header, dict):
            raise BareloopError(f"{self.path}: its header is not a JSON object")
        header.pop("__metadata__", None)
        return header, 8 + length

    def _stored(self, name: str, entry: Any) -> Stored:
        match entry:
            case {"dtype": str(kind), "shape": [*shape], "data_offsets": [int(start), int(end)]} if len(
                shape
            ) <= MAX_DIMENSIONS and all(type(size) is int and 0 <= size < 2**63 for size in shape):
                pass
            case _:
                raise BareloopError(f"{self.path}: the header's entry for {name} is malformed")
        if kind not in DTYPES:
            raise BareloopError(f"{self.path}: {name} has dtype {kind}; known: {', '.join(DTYPES)}")
        needed = math.prod(shape) * DTYPES[kind].itemsize
        if start < 0 or end - start != needed:
            raise BareloopError(
                f"{self.path}: {name} {shape} in {kind} takes {needed:,} bytes, and the header names {end - start:,}"
            )
        if self.data_start + end > self.size:
            raise self.truncated(f"{name} ends at byte {self.data_start + end:,}")
        return Stored(self, DTYPES[kind], tuple(shape), self.data_start + start)


def fingerprint(paths: Iterable[Path]) -> str:
    """A SHA-256 that identifies the weights in these files, from at most `HASH_ALL_BYTES` bytes of each.

    Of a larger file the header, the size and evenly spaced blocks are hashed: enough to detect other weights, but not a
    single changed byte.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size <= HASH_ALL_BYTES:
                digest.update(hashlib.file_digest(file, "sha256").digest())
                continue
            begin = _data_start(file)
            digest.update(file.read(begin - 8))
            for offset in range(begin, size, (size - begin) // SAMPLES):
                file.seek(offset)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _data_start(file: BinaryIO) -> int:
    """Where the tensors begin in a safetensors file, which is then at byte 8. In another file, byte 8."""
    (header,) = struct.unpack("<Q", file.read(8))
    return 8 + int(header) if header <= MAX_HEADER else 8


def open_checkpoint(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder by name, from `model.safetensors` or the shards in its index."""
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise BareloopError(f"{folder / INDEX} has no weight_map from tensors to files")
        shards = sorted(set(index.values()))
        outside = [name for name in shards if Path(name).name != name]
        if outside:
            raise BareloopError(f"{folder / INDEX} names {quote(outside[0])}, which is not a file in the same folder")
        present = {path.name for path in folder.iterdir()}
        missing = [name for name in shards if name not in present]
        if missing:
            raise BareloopError(
                f"{len(missing)} of {len(shards)} shards are missing in {folder}: {abbreviate(missing)}; download them"
            )
        return {
            name: stored
            for shard in shards
            for name, stored in SafetensorsFile(folder / shard).tensors.items()
            if index.get(name, shard) == shard
        }
    if (folder / SINGLE).exists():
        return SafetensorsFile(folder / SINGLE).tensors
    raise BareloopError(f"{folder} has no {SINGLE} and no {INDEX}")


def write_tensors(named: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Write tensors to `model.safetensors`, or to shards and an index. At most one shard is in memory."""
    files: list[tuple[Path, list[str]]] = []
    shard: dict[str, Tensor] = {}
    total = size = 0

    def write() -> None:
        from safetensors.torch import save_file

        path = folder / f"shard-{len(files)}"
        save_file(shard, path, {"format": "pt"})
        path.chmod(0o644)  # save_file makes it readable only by the owner
        files.append((path, list(shard)))
        shard.clear()

    for name, tensor in named:
        if size and size + tensor.nbytes > MAX_SHARD:
            write()
            size = 0
        shard[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    write()
    if len(files) == 1:
        files[0][0].rename(folder / SINGLE)
        return
    index: dict[str, str] = {}
    for number, (path, names) in enumerate(files, 1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        path.rename(folder / file)
        index |= dict.fromkeys(names, file)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")


def abbreviate(names: list[str], limit: int = 5) -> str:
    """The first few names, and the number of the others."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
