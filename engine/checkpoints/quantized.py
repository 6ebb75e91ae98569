"""Quantized checkpoints: how config.json declares them, and our own folders, which are read as they are used.

Such a folder holds every parameter under the name and in the layout that it has in memory (matrices in panels), so
that loading is reading. Checkpoints of bitsandbytes are read as numbers (`bnb.as_numbers`) and quantized again, which
gives the same codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from engine.checkpoints.safetensors import Stored, some
from engine.layers.linear import Matrix
from engine.models.family import Model
from engine.quant import QUANTS
from engine.quant.panels import Panels
from engine.quant.torch_packed import TorchInt8, panelled, unpanelled
from engine.runtime.device import dtype_name
from engine.runtime.errors import BareloopError

METHOD, VERSION = "bareloop", 1


@dataclass(frozen=True)
class Prequantized:
    """What a checkpoint says of its own format."""

    quant: str
    ends: int | None = None  # bits of the embedding and the head, in a folder of ours; None in one of bitsandbytes'

    @property
    def is_ours(self) -> bool:
        """Written by `LLM.save`."""
        return self.ends is not None


def declaration(model: Model, quant: str) -> dict[str, Any]:
    """The entry of config.json, `quantization_config`, for a folder of ours."""
    eight = quant == "int8" or isinstance(model.head.format, TorchInt8)
    return {"quant_method": METHOD, "format": quant, "ends": 8 if eight else 4, "version": VERSION}


def read_prequantized(raw: Mapping[str, Any]) -> Prequantized | None:
    """How the checkpoint with this config.json is quantized; raises one line for ways that are not implemented."""
    said = raw.get("quantization_config")
    if said is None:
        return None
    if not isinstance(said, dict):
        raise BareloopError(f"config.json: quantization_config = {said!r} is not an object")
    method = said.get("quant_method", "unnamed")
    if method == METHOD:
        known = said.get("version") == VERSION and said.get("format") in QUANTS[1:] and said.get("ends") in (4, 8)
        if not known:
            raise BareloopError(f"config.json: quantization_config {said} is of another version; quantize it again")
        return Prequantized(said["format"], said["ends"])
    if method == "bitsandbytes" or "load_in_4bit" in said or "load_in_8bit" in said:
        if said.get("load_in_8bit"):
            threshold = said.get("llm_int8_threshold", 6.0)
            if threshold != 6.0:
                raise BareloopError(f"config.json: llm_int8_threshold = {threshold} is not implemented; 6.0 is")
            return Prequantized("llm.int8")
        kind = said.get("bnb_4bit_quant_type", "fp4")
        if said.get("load_in_4bit") and kind in ("nf4", "fp4"):
            return Prequantized(kind)
    raise BareloopError(
        f"config.json: quantization_config ({method}) is not supported; use the unquantized checkpoint with --quant"
    )


def match_saved(model: nn.Module, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The stored tensor of every parameter, in a folder of ours; raises one line where they do not fit."""
    own = dict(model.named_parameters())
    for kind, names in (("missing", own.keys() - tensors.keys()), ("unexpected", tensors.keys() - own.keys())):
        if names:
            raise BareloopError(f"the tensors do not fit config.json: {len(names)} {kind} ({some(sorted(names))})")
    for name, parameter in own.items():
        stored = tensors[name]
        numbers = stored.dtype.is_floating_point and parameter.is_floating_point()
        if stored.shape != tuple(parameter.shape) or not (numbers or stored.dtype == parameter.dtype):
            raise BareloopError(
                f"the tensors do not fit config.json: {name} is {dtype_name(stored.dtype)} {list(stored.shape)}, "
                f"not {dtype_name(parameter.dtype)} {list(parameter.shape)}"
            )
    return {name: tensors[name] for name in own}


def to_save(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter as a folder of ours holds it."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        named: dict[str, Tensor] = {
            name: tensor for name, tensor in module.named_parameters(recurse=False) if id(tensor) not in seen
        }  # without what a head shares with the embedding
        seen |= {id(tensor) for tensor in named.values()}
        if isinstance(module, Matrix) and module.format is not None and "weight" in named:
            named |= panelled(module.format, module._parameters)
        for leaf, tensor in named.items():
            yield f"{path}.{leaf}", tensor.detach().contiguous()


def leave_panels(model: Model) -> None:
    """Lay matrices in panels out as PyTorch's products want them, where there are no kernels."""
    tied = model.head.weight is model.embed.weight
    for module in model.modules():
        if isinstance(module, Matrix) and isinstance(module.format, Panels) and not (tied and module is model.head):
            module.hold(*unpanelled(module.format, module._parameters))
    if tied:
        model.head.share(model.embed)


def is_quantized(model: nn.Module) -> bool:
    """Whether any matrix is in a format."""
    return any(isinstance(module, Matrix) and module.format is not None for module in model.modules())
