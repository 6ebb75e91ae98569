"""Random matrices in all formats that the C++ kernels take."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from engine import kernels
from engine.kernels import build
from engine.quant import gguf
from engine.quant.base import Format, Tensors
from engine.quant.panels import Panels, to_panels
from engine.quant.tables import TablePanels

CPU = torch.device("cpu")
PANELS = {"int8": (8, 32), "int4": (4, 32), "int4, groups of 16": (4, 16)}
RECORDS = {
    "Q4_0": ((gguf.Q4_0, 230),),
    "Q4_1": ((gguf.Q4_1, 230),),
    "Q5_0": ((gguf.Q5_0, 230),),
    "Q8_0": ((gguf.Q8_0, 230),),
    "Q4_K": ((gguf.Q4_K, 230),),
    "Q5_K": ((gguf.Q5_K, 230),),
    "Q6_K": ((gguf.Q6_K, 230),),
    "mixed": ((gguf.Q4_1, 96), (gguf.Q6_K, 64), (gguf.Q8_0, 32), (gguf.Q5_K, 38)),
}
FORMATS = (*PANELS, "nf4", *RECORDS)
COLUMNS = {"int8": (4, 100, 580), "nf4": (64, 320), "Q4_K": (256, 768), "Q5_K": (256,), "Q6_K": (256, 768)}


@cache
def matrix(name: str, columns: int) -> tuple[Format, Tensors, torch.Tensor]:
    """A random matrix in a format, with a bias: the format, the tensors, and its values in float64."""
    generator = torch.Generator().manual_seed(columns)
    weight_format: Format
    if name in PANELS:
        bits, group = PANELS[name]
        weight_format = Panels(230 if bits == 8 else 256, columns, torch.float32, bits, group)
        tensors = weight_format.begin(CPU)
        part = torch.randn(weight_format.rows, columns, generator=generator)
        weight_format.fill(tensors, 0, part)
    elif name == "nf4":
        weight_format = TablePanels(256, columns, torch.float32, 4, 64)
        tensors = weight_format.empty(CPU)
        codes = torch.randint(-8, 8, (256, columns), dtype=torch.int8, generator=generator)
        tensors["weight"] = to_panels(codes, 4)
        torch.randn(len(tensors["scales"]), generator=generator, out=tensors["scales"])
    else:
        weight_format = gguf.Records(230, columns, torch.float32, RECORDS[name])
        tensors = weight_format.empty(CPU)
        tensors["weight"].random_(0, 256, generator=generator)
        for kind, _, _, records in weight_format._parts(tensors["weight"]):  # no infinite scales
            halves = gguf.TYPES[gguf.UNPACKED.get(kind, kind)].fields(records)[0]
            halves.copy_(torch.randn(halves.shape, generator=generator) * 0.01)
    bias = torch.randn(weight_format.rows, generator=generator)
    return weight_format, {**tensors, "bias": bias}, dense(weight_format, tensors)


def dense(weight_format: Format, tensors: Tensors) -> torch.Tensor:
    """The values of a matrix by PyTorch's operators, in float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_active_ops", None)
        return weight_format.dense(tensors, 0, weight_format.rows, torch.float32).double()


def multiplied(ops: Any, name: str, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The values of a matrix as `gemm` multiplies them: with AMX in bfloat16, but for int8's exact integers."""
    rounded = is_amx(ops) and dtype == torch.bfloat16 and name not in ("dense", "int8")
    return values.to(dtype).double() if rounded else values


def is_amx(ops: Any) -> bool:
    return bool(ops.name == build.namespace("amx"))
