"""Find a model and read its headers: everything is known, no weight is in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from engine.checkpoints.bitsandbytes import Dequantized, as_numbers
from engine.checkpoints.hub import find_model
from engine.checkpoints.mapping import parts, settle_tie
from engine.checkpoints.pickles import find_tensors
from engine.checkpoints.quantized import read_prequantized
from engine.checkpoints.safetensors import Stored, open_checkpoint
from engine.checkpoints.weight_formats import assign
from engine.models import configure
from engine.models.config import ModelConfig
from engine.models.family import Family, Model
from engine.quant import canonical
from engine.runtime.device import choose_dtype, dtype_name
from engine.runtime.errors import UsageError
from engine.runtime.files import read_json


@dataclass(frozen=True)
class Opened:
    """A model folder with its headers read: everything is known, no weight is in memory."""

    folder: Path
    family: Family
    config: ModelConfig
    tensors: Mapping[str, Stored]
    dtype: torch.dtype
    model: Model  # on the meta device
    quant: str  # the weight format
    is_saved: bool  # in a folder of `save`'s, quantized

    @property
    def told_format(self) -> str:
        """What its weights are in, as the flags spell it."""
        return dtype_name(self.dtype) if self.quant == "none" else self.quant


def open_model(
    name: str | Path,
    dtype: str = "auto",
    allow_pickle: bool = False,
    quant: str = "none",
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Opened:
    """Find a model by folder or hub id and build it without its weights, as it will be on the device.

    `auto` is the dtype that config.json names, else the one that most of the file is in. A checkpoint that is
    quantized keeps its own weight format.
    """
    quant = canonical(quant)
    folder = find_model(name, allow_pickle)
    raw = read_json(folder / "config.json")
    prequantized = read_prequantized(raw)
    if prequantized is not None and quant not in ("none", prequantized.quant):
        raise UsageError(f"{folder} is in {prequantized.quant} already, and not turned into {quant}; leave --quant out")
    quant = quant if prequantized is None else prequantized.quant
    family, config = configure({key: value for key, value in raw.items() if key != "quantization_config"})
    tensors: Mapping[str, Stored] = open_checkpoint(find_tensors(folder, allow_pickle))
    saved = prequantized is not None and prequantized.is_ours
    if prequantized is not None and not saved:
        tensors = as_numbers(tensors)
    if not saved:
        named = {family.canonical(name): tensor for name, tensor in tensors.items()}
        config, tensors = settle_tie(config, family, named)
    sizes = Counter({"float32": 0})
    for tensor in tensors.values():
        if tensor.dtype.is_floating_point and not isinstance(tensor, Dequantized):
            sizes[dtype_name(tensor.dtype)] += tensor.nbytes
    chosen = choose_dtype(dtype, config.dtype or sizes.most_common(1)[0][0])
    with torch.device("meta"):
        model = family.build(config).to(chosen)
    plain = set() if prequantized is None else _left_plain(model, family, tensors, saved)
    assign(model, quant, device, None if prequantized is None else prequantized.ends, plain)
    return Opened(folder, family, config, tensors, chosen, model, quant, saved)


def _left_plain(model: nn.Module, family: Family, tensors: Mapping[str, Stored], saved: bool) -> set[str]:
    """The names of weights that a quantized checkpoint holds as numbers; of those that are stacked, in any part."""
    if saved:
        weights = (name for name in tensors if name.endswith(".weight"))
        return {name for name in weights if f"{name.removesuffix('weight')}scales" not in tensors}
    return {
        name
        for name, listed in parts(model, family).items()
        if not all(isinstance(tensors.get(part.name), Dequantized) for part in listed)
    }
