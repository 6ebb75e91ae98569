"""bitsandbytes' formats, multiplied by that library: nf4, fp4 (Dettmers et al. 2023), llm.int8 (Dettmers et al. 2022).

Checkpoints that it quantized: engine/checkpoints/bitsandbytes.py. nf4 and fp4 for the C++ kernels: tables.py.
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

from engine.quant.base import Format, Tensors, weight_and_scales
from engine.runtime.errors import BareloopError

BLOCK, NESTED_BLOCK = 64, 256  # weights that share a scale; quantized scales that share a scale
OUTLIER = 6.0  # columns of x with a larger |x| are multiplied in 16 bits (llm.int8)


def check(device: torch.device) -> None:
    """Raise `BareloopError` if bitsandbytes is missing or does not support the device."""
    if find_spec("bitsandbytes") is None:
        raise BareloopError("this weight format needs bitsandbytes: pip install bareloop[bnb]")
    if device.type not in ("cpu", "cuda"):
        raise BareloopError(f"bitsandbytes supports cpu and cuda, not {device}; use --device cpu")


def choose_format(quant: str, rows: int, columns: int, dtype: torch.dtype) -> Format | None:
    """The format of a matrix; None if its shape is not supported."""
    if quant == "llm.int8":
        return LlmInt8(rows, columns, dtype)
    kind, _, double = quant.partition("-")
    return Bnb4(rows, columns, dtype, kind, bool(double)) if columns % BLOCK == 0 else None


@cache
def _library() -> Any:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns about conversions that are intended
    try:
        import bitsandbytes
    except Exception as error:
        raise BareloopError(f"bitsandbytes does not load ({error}); install a version for this torch") from error
    return bitsandbytes


@cache
def _table(kind: str, device: torch.device) -> Tensor:
    """Values of the 4-bit codes [16]."""
    return _library().functional.get_4bit_type(kind, device=device)


@cache
def _nested_table(device: torch.device) -> Tensor:
    """Values of the 8-bit codes of quantized scales [256]."""
    return _library().functional.create_dynamic_map().to(device)


def _dequantize_scales(codes: Tensor, tensors: Tensors) -> Tensor:
    """Scales from their 8-bit codes and the nested scales."""
    functional = _library().functional
    nested = functional.QuantState(
        absmax=tensors["nested_scales"], code=_nested_table(codes.device), blocksize=NESTED_BLOCK, dtype=torch.float32
    )
    scales: Tensor = functional.dequantize_blockwise(codes, nested) + tensors["nested_offset"]
    return scales


@dataclass(frozen=True)
class Bnb4(Format):
    """4-bit codes of all rows end to end, one scale per 64 weights; with `double` the scales are 8-bit codes, too."""

    kind: str = "nf4"
    double: bool = False

    capturable = False

    def empty(self, device: torch.device) -> dict[str, Tensor]:
        tensors = self.begin(device)
        if self.double:
            count = len(tensors["scales"])
            tensors["scales"] = torch.empty(count, dtype=torch.uint8, device=device)
            tensors["nested_scales"] = torch.empty(-(-count // NESTED_BLOCK), device=device)
            tensors["nested_offset"] = torch.empty(1, device=device)
        return tensors

    def begin(self, device: torch.device) -> dict[str, Tensor]:
        count = self.rows * self.columns
        codes = torch.empty(count // 2, 1, dtype=torch.uint8, device=device)
        return {"weight": codes, "scales": torch.empty(count // BLOCK, device=device)}

    def fill(self, tensors: Mapping[str, Tensor], first: int, part: Tensor) -> None:
        codes, state = _library().functional.quantize_4bit(part.contiguous(), blocksize=BLOCK, quant_type=self.kind)
        start = first * self.columns
        tensors["weight"][start // 2 : start // 2 + len(codes)] = codes
        tensors["scales"][start // BLOCK : start // BLOCK + len(state.absmax)] = state.absmax

    def finish(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.double:
            return tensors
        offset = tensors["scales"].mean()
        scales, state = _library().functional.quantize_blockwise(tensors["scales"] - offset, blocksize=NESTED_BLOCK)
        return {**tensors, "scales": scales, "nested_scales": state.absmax, "nested_offset": offset.view(1)}

    def state(self, tensors: Tensors, first: int, last: int) -> Any:
        """bitsandbytes' description of rows `first` to `last`."""
        functional, (weight, scales) = _library().functional, weight_and_scales(tensors)
        if self.double:
            scales = _dequantize_scales(scales, tensors)
        return functional.QuantState(
            absmax=scales[first * self.columns // BLOCK : -(-last * self.columns // BLOCK)],
            shape=torch.Size((last - first, self.columns)),
            code=_table(self.kind, weight.device),
            blocksize=BLOCK,
            quant_type=self.kind,
            dtype=self.dtype,
        )

    def scale_codes(self, tensors: Tensors, scales: Tensor) -> Tensor:
        """The 8-bit codes of scales that were dequantized with the same nested scales: they give the same scales."""
        nested = tensors["nested_scales"]
        assert nested is not None
        every_code = torch.arange(NESTED_BLOCK, device=nested.device).to(torch.uint8).repeat(len(nested))
        values = _dequantize_scales(every_code, tensors).view(len(nested), -1)  # ascending in each block
        padded = torch.nn.functional.pad(scales, (0, values.numel() - len(scales))).view_as(values)
        return torch.searchsorted(values, padded).clamp_(max=255).to(torch.uint8).flatten()[: len(scales)]

    def dense(self, tensors: Tensors, first: int, last: int, dtype: torch.dtype) -> Tensor:
        weight = tensors["weight"]
        assert weight is not None
        codes = weight[first * self.columns // 2 : last * self.columns // 2]
        return _library().functional.dequantize_4bit(codes, self.state(tensors, first, last)).to(dtype)

    def product(self, tensors: Tensors, x: Tensor) -> Tensor:
        return _library().matmul_4bit(x, tensors["weight"], self.state(tensors, 0, self.rows), bias=tensors["bias"])


@dataclass(frozen=True)
class LlmInt8(Format):
    """8-bit codes and the largest |weight| of each row; outlier columns of x are multiplied in 16 bits."""

    capturable = False

    def empty(self, device: torch.device) -> dict[str, Tensor]:
        codes = torch.empty(self.rows, self.columns, dtype=torch.int8, device=device)
        return {"weight": codes, "scales": torch.empty(self.rows, device=device)}

    def fill(self, tensors: Mapping[str, Tensor], first: int, part: Tensor) -> None:
        codes, largest, _ = _library().functional.int8_vectorwise_quant(part.half())
        tensors["weight"][first : first + len(part)] = codes
        tensors["scales"][first : first + len(part)] = largest

    def dense(self, tensors: Tensors, first: int, last: int, dtype: torch.dtype) -> Tensor:
        weight, scales = weight_and_scales(tensors)
        return (weight[first:last] * (scales[first:last, None] / 127)).to(dtype)

    def product(self, tensors: Tensors, x: Tensor) -> Tensor:
        library = _library()
        state = library.MatmulLtState()
        state.CB, state.SCB, state.threshold = tensors["weight"], tensors["scales"], OUTLIER
        state.has_fp16_weights = state.is_training = False
        y: Tensor = library.matmul(x, tensors["weight"], bias=tensors["bias"], state=state)
        return y.to(x.dtype)
