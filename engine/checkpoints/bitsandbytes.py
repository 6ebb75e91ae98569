"""Checkpoints quantized by bitsandbytes: dequantized while they are read. Quantized again, they give the same codes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.checkpoints.tensor_file import Decoded, Stored
from engine.quant.bitsandbytes import BLOCK
from engine.runtime.errors import BareloopError

STATE = ".quant_state.bitsandbytes__"


@dataclass(frozen=True)
class Dequantized(Decoded):
    """A quantized matrix of a checkpoint by bitsandbytes, which reads as a dense one."""

    parts: Mapping[str, Stored]  # its tensors by bitsandbytes' names
    info: Mapping[str, Any]

    def equals(self, other: Stored) -> bool:
        return isinstance(other, Dequantized) and self.parts["codes"].equals(other.parts["codes"])

    def read_into(self, target: Tensor) -> None:
        target.copy_(self._read_8_bit() if "SCB" in self.parts else self._read_4_bit())

    def _read_8_bit(self) -> Tensor:
        codes, largest = (_read(self.parts[name], self.first, self.first + self.shape[0]) for name in ("codes", "SCB"))
        return codes * (largest[:, None] / 127)

    def _read_4_bit(self) -> Tensor:
        size, columns = int(self.info["blocksize"]), self.shape[1]
        begin, end = self.first * columns, (self.first + self.shape[0]) * columns
        block, last = begin // size, -(-end // size)
        packed = _read(self.parts["codes"], block * size // 2, min(last * size // 2, self.parts["codes"].shape[0]))
        codes = torch.stack((packed >> 4, packed & 15), dim=-1).flatten().int()
        scales = _read(self.parts["absmax"], block, last)
        if "nested_absmax" in self.parts:
            nested, table = (_read(self.parts[name]) for name in ("nested_absmax", "nested_quant_map"))
            indices = torch.arange(block, last) // int(self.info["nested_blocksize"])
            scales = table[scales.int()] * nested[indices] + float(self.info["nested_offset"])
        values = _read(self.parts["quant_map"])[codes] * scales.repeat_interleave(size)[: len(codes)]
        return values[begin - block * size :][: end - begin].view(self.shape)


def dequantized_tensors(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors of a checkpoint by bitsandbytes, its quantized matrices as `Dequantized`."""
    result: dict[str, Stored] = {}
    companions = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
    for name, stored in tensors.items():
        base = name.removesuffix(".weight")
        state = next((key for kind in ("nf4", "fp4") if (key := f"{name}{STATE}{kind}") in tensors), None)
        if state is not None:
            parts = {end[1:]: tensors[name + end] for end in companions if name + end in tensors}
            info, parts = _info(tensors[state], state), {"codes": stored, **parts}
            _check_parts(parts, info, f"{stored.file.path}: {name}")
            result[name] = Dequantized(stored.file, torch.float32, info["shape"], stored.start, parts, info)
        elif name.endswith(".weight") and f"{base}.SCB" in tensors:
            parts = {"codes": stored, "SCB": tensors[f"{base}.SCB"]}
            if len(stored.shape) != 2 or parts["SCB"].shape != stored.shape[:1]:
                raise BareloopError(
                    f"{stored.file.path}: {name} and its SCB do not match; download the checkpoint again"
                )
            result[name] = Dequantized(stored.file, torch.float32, stored.shape, stored.start, parts, {})
        elif STATE not in name and not name.endswith((*companions, ".SCB", ".weight_format")):
            result[name] = stored
    return result


def _info(stored: Stored, name: str) -> dict[str, Any]:
    """Parse bitsandbytes' description of a matrix, JSON in a tensor of bytes."""
    try:
        info = json.loads(bytes(_read(stored).tolist()))
        rows, columns = info["shape"]
        if all(type(size) is int and size > 0 for size in (rows, columns, info["blocksize"])):
            nested = {key: info[key] for key in ("nested_blocksize", "nested_offset") if key in info}
            return {"shape": (rows, columns), "blocksize": info["blocksize"], **nested}
    except (ValueError, KeyError, TypeError, IndexError, ZeroDivisionError):
        pass
    raise BareloopError(f"{stored.file.path}: {name} is not a valid description of a matrix by bitsandbytes")


def _check_parts(parts: Mapping[str, Stored], info: Mapping[str, Any], name: str) -> None:
    """Raise `BareloopError` if a tensor of a 4-bit matrix is missing or has the wrong size."""
    if info["blocksize"] != BLOCK:
        raise BareloopError(
            f"{name} has one scale per {info['blocksize']} weights, which is not implemented; {BLOCK} is"
        )
    count = info["shape"][0] * info["shape"][1]
    blocks = -(-count // BLOCK)
    sizes = {"codes": -(-count // 2), "absmax": blocks, "quant_map": 16}
    if "nested_absmax" in parts or ("absmax" in parts and not parts["absmax"].dtype.is_floating_point):
        size = info.get("nested_blocksize")
        if type(size) is not int or size < 1 or not isinstance(info.get("nested_offset"), float | int):
            raise BareloopError(f"{name}: its description lacks nested_blocksize or nested_offset")
        sizes |= {"nested_absmax": -(-blocks // size), "nested_quant_map": 256}
    for part, size in sizes.items():
        if part not in parts or not parts[part].shape or parts[part].shape[0] != size:
            raise BareloopError(f"{name}: its {part} is missing or does not have {size:,} entries; download it again")


def _read(stored: Stored, first: int = 0, last: int | None = None) -> Tensor:
    """Read a tensor, or some of its rows; a matrix with one column as a vector."""
    part = stored.row_range(first, stored.shape[0] if last is None else last)
    tensor = torch.empty(part.shape, dtype=part.dtype)
    part.read_into(tensor)
    return tensor.flatten() if tensor.shape[1:] == (1,) else tensor
