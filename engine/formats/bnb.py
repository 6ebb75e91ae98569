"""bitsandbytes' formats, by its own products: nf4 and fp4 (Dettmers et al. 2023), llm.int8 (Dettmers et al. 2022).

And the checkpoints that it has quantized, as numbers: quantized again, they give the same codes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint import Stored
from engine.errors import BareloopError
from engine.formats.base import Format, Held, weight_and_scales

BLOCK, NESTED_BLOCK = 64, 256  # numbers that share a scale; scales that share one of their own
OUTLIER = 6.0  # |x| from which a column stays in 16 bits (llm.int8)
STATE = ".quant_state.bitsandbytes__"


def check(device: torch.device) -> None:
    """Raise one line where bitsandbytes is missing, or does not serve the device."""
    if find_spec("bitsandbytes") is None:
        raise BareloopError("this weight format needs bitsandbytes: pip install bareloop[bnb]")
    if device.type not in ("cpu", "cuda"):
        raise BareloopError(f"bitsandbytes' formats are for cpu and cuda, not {device}; use --device cpu")


def choose(quant: str, rows: int, columns: int, dtype: torch.dtype) -> Format | None:
    """A matrix's format; none where its shape has none."""
    if quant == "llm.int8":
        return LlmInt8(rows, columns, dtype)
    kind, _, double = quant.partition("-")
    return Bnb4(rows, columns, dtype, kind, bool(double)) if columns % BLOCK == 0 else None


@cache
def _library() -> Any:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of what it does as intended
    try:
        import bitsandbytes
    except Exception as error:
        raise BareloopError(f"bitsandbytes does not load ({error}); install one that fits this torch") from error
    return bitsandbytes


@cache
def _table(kind: str, device: torch.device) -> Tensor:
    """What the codes of 4 bits stand for [16]."""
    return _library().functional.get_4bit_type(kind, device=device)


@cache
def _nested_table(device: torch.device) -> Tensor:
    """What the codes of quantized scales stand for [256]."""
    return _library().functional.create_dynamic_map().to(device)


@dataclass(frozen=True)
class Bnb4(Format):
    """Codes of 4 bits, of all rows end to end, and a scale for each 64 of them; `double`: of 8 bits themselves."""

    kind: str = "nf4"
    double: bool = False

    def empty(self, device: torch.device) -> dict[str, Tensor]:
        held = self.begin(device)
        if self.double:
            count = len(held["scales"])
            held["scales"] = torch.empty(count, dtype=torch.uint8, device=device)
            held["nested_scales"] = torch.empty(-(-count // NESTED_BLOCK), device=device)
            held["nested_offset"] = torch.empty(1, device=device)
        return held

    def begin(self, device: torch.device) -> dict[str, Tensor]:
        count = self.rows * self.columns
        codes = torch.empty(count // 2, 1, dtype=torch.uint8, device=device)
        return {"weight": codes, "scales": torch.empty(count // BLOCK, device=device)}

    def fill(self, held: Mapping[str, Tensor], first: int, part: Tensor) -> None:
        codes, state = _library().functional.quantize_4bit(part.contiguous(), blocksize=BLOCK, quant_type=self.kind)
        start = first * self.columns
        held["weight"][start // 2 : start // 2 + len(codes)] = codes
        held["scales"][start // BLOCK : start // BLOCK + len(state.absmax)] = state.absmax

    def finish(self, held: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.double:
            return held
        offset = held["scales"].mean()
        scales, state = _library().functional.quantize_blockwise(held["scales"] - offset, blocksize=NESTED_BLOCK)
        return {**held, "scales": scales, "nested_scales": state.absmax, "nested_offset": offset.view(1)}

    def state(self, held: Held, first: int, last: int) -> Any:
        """bitsandbytes' own description of some rows."""
        functional, (weight, scales) = _library().functional, weight_and_scales(held)
        if self.double:
            nested = functional.QuantState(
                absmax=held["nested_scales"],
                code=_nested_table(weight.device),
                blocksize=NESTED_BLOCK,
                dtype=torch.float32,
            )
            scales = functional.dequantize_blockwise(scales, nested) + held["nested_offset"]
        return functional.QuantState(
            absmax=scales[first * self.columns // BLOCK : -(-last * self.columns // BLOCK)],
            shape=torch.Size((last - first, self.columns)),
            code=_table(self.kind, weight.device),
            blocksize=BLOCK,
            quant_type=self.kind,
            dtype=self.dtype,
        )

    def dense(self, held: Held, first: int, last: int, dtype: torch.dtype) -> Tensor:
        weight = held["weight"]
        assert weight is not None
        codes = weight[first * self.columns // 2 : last * self.columns // 2]
        return _library().functional.dequantize_4bit(codes, self.state(held, first, last)).to(dtype)

    def product(self, held: Held, x: Tensor) -> Tensor:
        return _library().matmul_4bit(x, held["weight"], self.state(held, 0, self.rows), bias=held["bias"])


@dataclass(frozen=True)
class LlmInt8(Format):
    """Codes of 8 bits and the largest number of each row; columns of x with outliers are multiplied in 16 bits."""

    def empty(self, device: torch.device) -> dict[str, Tensor]:
        codes = torch.empty(self.rows, self.columns, dtype=torch.int8, device=device)
        return {"weight": codes, "scales": torch.empty(self.rows, device=device)}

    def fill(self, held: Mapping[str, Tensor], first: int, part: Tensor) -> None:
        codes, largest, _ = _library().functional.int8_vectorwise_quant(part.half())
        held["weight"][first : first + len(part)] = codes
        held["scales"][first : first + len(part)] = largest

    def dense(self, held: Held, first: int, last: int, dtype: torch.dtype) -> Tensor:
        weight, scales = weight_and_scales(held)
        return (weight[first:last] * (scales[first:last, None] / 127)).to(dtype)

    def product(self, held: Held, x: Tensor) -> Tensor:
        library = _library()
        state = library.MatmulLtState()
        state.CB, state.SCB, state.threshold = held["weight"], held["scales"], OUTLIER
        state.has_fp16_weights = state.is_training = False
        y: Tensor = library.matmul(x, held["weight"], bias=held["bias"], state=state)
        return y.to(x.dtype)


@dataclass(frozen=True)
class Dequantized(Stored):
    """A matrix in a checkpoint of bitsandbytes', as the numbers that it stands for; from row `first` on."""

    parts: Mapping[str, Stored]  # its tensors, by bitsandbytes' names
    info: Mapping[str, Any]
    first: int = 0

    @property
    def aligned(self) -> bool:
        return False

    def some_rows(self, first: int, last: int) -> Dequantized:
        return replace(self, shape=(last - first, *self.shape[1:]), first=self.first + first)

    def equals(self, other: Stored) -> bool:
        return isinstance(other, Dequantized) and self.parts["codes"].equals(other.parts["codes"])

    def read_into(self, place: Tensor) -> None:
        place.copy_(self._eight() if "SCB" in self.parts else self._four())

    def _eight(self) -> Tensor:
        codes, largest = (_read(self.parts[name], self.first, self.first + self.shape[0]) for name in ("codes", "SCB"))
        return codes * (largest[:, None] / 127)

    def _four(self) -> Tensor:
        size, columns = int(self.info["blocksize"]), self.shape[1]
        begin, end = self.first * columns, (self.first + self.shape[0]) * columns
        block, last = begin // size, -(-end // size)
        packed = _read(self.parts["codes"], block * size // 2, min(last * size // 2, self.parts["codes"].shape[0]))
        codes = torch.stack((packed >> 4, packed & 15), dim=-1).flatten().int()
        scales = _read(self.parts["absmax"], block, last)
        if "nested_absmax" in self.parts:
            nested, table = (_read(self.parts[name]) for name in ("nested_absmax", "nested_quant_map"))
            places = torch.arange(block, last) // int(self.info["nested_blocksize"])
            scales = table[scales.int()] * nested[places] + float(self.info["nested_offset"])
        numbers = _read(self.parts["quant_map"])[codes] * scales.repeat_interleave(size)[: len(codes)]
        return numbers[begin - block * size :][: end - begin].view(self.shape)


def as_numbers(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """A checkpoint of bitsandbytes' with its quantized matrices as numbers; the others as they are."""
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
                raise BareloopError(f"{stored.file.path}: {name} and its SCB do not fit; fetch the checkpoint again")
            result[name] = Dequantized(stored.file, torch.float32, stored.shape, stored.start, parts, {})
        elif STATE not in name and not name.endswith((*companions, ".SCB", ".weight_format")):
            result[name] = stored
    return result


def _info(stored: Stored, name: str) -> dict[str, Any]:
    """What bitsandbytes writes beside a matrix, as JSON in bytes."""
    try:
        info = json.loads(bytes(_read(stored).tolist()))
        rows, columns = info["shape"]
        if all(type(size) is int and size > 0 for size in (rows, columns, info["blocksize"])):
            nested = {key: info[key] for key in ("nested_blocksize", "nested_offset") if key in info}
            return {"shape": (rows, columns), "blocksize": info["blocksize"], **nested}
    except (ValueError, KeyError, TypeError, IndexError, ZeroDivisionError):
        pass
    raise BareloopError(f"{stored.file.path}: {name} is no description of a matrix that bitsandbytes quantized")


def _check_parts(parts: Mapping[str, Stored], info: Mapping[str, Any], name: str) -> None:
    """Raise one line where a matrix of 4 bits lacks something, or has too little or too much of it."""
    if info["blocksize"] != BLOCK:
        raise BareloopError(f"{name} has a scale for {info['blocksize']} weights, which is not implemented; {BLOCK} is")
    count = info["shape"][0] * info["shape"][1]
    blocks = -(-count // BLOCK)
    wanted = {"codes": -(-count // 2), "absmax": blocks, "quant_map": 16}
    if "nested_absmax" in parts or ("absmax" in parts and not parts["absmax"].dtype.is_floating_point):
        size = info.get("nested_blocksize")
        if type(size) is not int or size < 1 or not isinstance(info.get("nested_offset"), float | int):
            raise BareloopError(f"{name}: its description lacks nested_blocksize or nested_offset")
        wanted |= {"nested_absmax": -(-blocks // size), "nested_quant_map": 256}
    for part, size in wanted.items():
        if part not in parts or not parts[part].shape or parts[part].shape[0] != size:
            raise BareloopError(f"{name}: its {part} is missing or has not {size:,} entries; fetch it again")


def _read(stored: Stored, first: int = 0, last: int | None = None) -> Tensor:
    """A tensor, or some rows of it; of a matrix with one column, as a vector."""
    part = stored.some_rows(first, stored.shape[0] if last is None else last)
    tensor = torch.empty(part.shape, dtype=part.dtype)
    part.read_into(tensor)
    return tensor.flatten() if tensor.shape[1:] == (1,) else tensor
