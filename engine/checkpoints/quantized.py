"""Quantized checkpoints: their declaration in config.json, and folders that this engine saved.

A folder of ours has every parameter under the name and in the layout that it has in memory (matrices in panels), so
that loading is reading; nf4 and fp4 are in the layout of bitsandbytes, and become panels after reading. Checkpoints by
bitsandbytes: engine/checkpoints/bitsandbytes.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from engine.checkpoints.safetensors import abbreviate
from engine.checkpoints.tensor_file import Stored
from engine.layers.linear import Matrix
from engine.models.family import Model
from engine.quant import BITSANDBYTES, BUILTIN
from engine.quant.panels import Panels
from engine.quant.tables import TablePanels, in_panels
from engine.quant.torch_packed import TorchInt8, from_panel_format, to_panel_format
from engine.runtime.device import dtype_name
from engine.runtime.errors import BareloopError, quote

METHOD, VERSION = "bareloop", 1


@dataclass(frozen=True)
class Prequantized:
    """The weight format that a checkpoint declares."""

    quant: str
    end_bits: int | None = None  # of the embedding and the head, in a folder of ours; None in one by bitsandbytes

    @property
    def is_ours(self) -> bool:
        """Written by `LLM.save`."""
        return self.end_bits is not None


def declaration(model: Model, quant: str) -> dict[str, Any]:
    """The `quantization_config` of config.json for a folder of ours."""
    eight_bits = quant == "int8" or isinstance(model.head.format, TorchInt8)
    return {"quant_method": METHOD, "format": quant, "ends": 8 if eight_bits else 4, "version": VERSION}


def read_prequantized(raw: Mapping[str, Any]) -> Prequantized | None:
    """How the checkpoint with this config.json is quantized, or None.

    Raises `BareloopError` for quantization methods that are not implemented.
    """
    declared = raw.get("quantization_config")
    if declared is None:
        return None
    if not isinstance(declared, dict):
        raise BareloopError(f"config.json: quantization_config = {quote(declared)} is not an object")
    method = declared.get("quant_method", "unnamed")
    if method == METHOD:
        supported = (
            declared.get("version") == VERSION
            and declared.get("format") in (*BUILTIN, *BITSANDBYTES)
            and declared.get("ends") in (4, 8)
        )
        if not supported:
            raise BareloopError(
                f"config.json: quantization_config {quote(declared)} is not supported; quantize it again"
            )
        return Prequantized(declared["format"], declared["ends"])
    if method == "bitsandbytes" or "load_in_4bit" in declared or "load_in_8bit" in declared:
        if declared.get("load_in_8bit"):
            threshold = declared.get("llm_int8_threshold", 6.0)
            if threshold != 6.0:
                raise BareloopError(f"config.json: llm_int8_threshold = {threshold} is not implemented; 6.0 is")
            return Prequantized("llm.int8")
        kind = declared.get("bnb_4bit_quant_type", "fp4")
        if declared.get("load_in_4bit") and kind in ("nf4", "fp4"):
            return Prequantized(kind)
    raise BareloopError(
        f"config.json: quantization_config ({method}) is not supported; use the unquantized checkpoint with --quant"
    )


def match_saved(model: nn.Module, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The stored tensor of every parameter, in a folder of ours. Raises `BareloopError` if they do not match."""
    parameters = dict(model.named_parameters())
    for kind, names in (
        ("missing", parameters.keys() - tensors.keys()),
        ("unexpected", tensors.keys() - parameters.keys()),
    ):
        if names:
            raise BareloopError(
                f"the tensors do not fit config.json: {len(names)} {kind} ({abbreviate(sorted(names))})"
            )
    for name, parameter in parameters.items():
        stored = tensors[name]
        both_float = stored.dtype.is_floating_point and parameter.is_floating_point()
        if stored.shape != tuple(parameter.shape) or not (both_float or stored.dtype == parameter.dtype):
            raise BareloopError(
                f"the tensors do not fit config.json: {name} is {dtype_name(stored.dtype)} {list(stored.shape)}, "
                f"not {dtype_name(parameter.dtype)} {list(parameter.shape)}"
            )
    return {name: tensors[name] for name in parameters}


def tensors_to_save(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name, as a folder of ours has it."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        named: dict[str, Tensor] = {
            name: tensor for name, tensor in module.named_parameters(recurse=False) if id(tensor) not in seen
        }  # without a tied head's weight, which is the embedding's
        seen |= {id(tensor) for tensor in named.values()}
        if isinstance(module, Matrix) and module.format is not None and "weight" in named:
            named |= to_panel_format(module.format, module._parameters)
            if isinstance(module.format, TablePanels):
                named |= module.format.to_origin(module._parameters)
        for leaf, tensor in named.items():
            yield f"{path}.{leaf}", tensor.detach().contiguous()


def convert_from_panels(model: Model) -> None:
    """Convert matrices in panels to the layout of PyTorch's operators, for CPUs without the C++ kernels."""
    tied = model.head.weight is model.embed.weight
    for module in model.modules():
        if isinstance(module, Matrix) and isinstance(module.format, Panels) and not (tied and module is model.head):
            module.set_format(*from_panel_format(module.format, module._parameters))
    if tied:
        model.head.share(model.embed)


def convert_to_panels(model: Model) -> None:
    """Convert matrices in nf4 and fp4 from bitsandbytes' layout to panels, for which there are kernels."""
    for module in model.modules():
        if isinstance(module, Matrix) and (panels := in_panels(module.format)) is not None:
            module.set_format(panels, panels.from_origin(module._parameters))


def is_quantized(model: nn.Module) -> bool:
    """Whether any matrix is quantized."""
    return any(isinstance(module, Matrix) and module.format is not None for module in model.modules())
