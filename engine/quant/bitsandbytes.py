"""bitsandbytes' formats, by its own products: nf4 and fp4 (Dettmers et al. 2023), llm.int8 (Dettmers et al. 2022).

And the checkpoints that it has quantized, as numbers: quantized again, they give the same codes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from engine.quant.base import Format, Held, weight_and_scales
from engine.runtime.errors import BareloopError

BLOCK, NESTED_BLOCK = 64, 256  # numbers that share a scale; scales that share one of their own
OUTLIER = 6.0  # |x| from which a column stays in 16 bits (llm.int8)


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
