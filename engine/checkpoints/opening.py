"""Find a model, and read its config and the headers of its files. No weights are loaded yet."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from engine.checkpoints.adapters.files import adapter_fingerprint
from engine.checkpoints.bitsandbytes import Dequantized, dequantized_tensors
from engine.checkpoints.gguf.source import gguf_files, open_gguf
from engine.checkpoints.hub import find_downloaded, locate
from engine.checkpoints.mapping import parameter_sources, resolve_tied_head
from engine.checkpoints.pickles import find_tensors
from engine.checkpoints.quantized import read_prequantized
from engine.checkpoints.safetensors import fingerprint, open_checkpoint
from engine.checkpoints.tensor_file import Decoded, Stored
from engine.checkpoints.weight_formats import assign_formats, keep_blocks
from engine.models import configure
from engine.models.config import ModelConfig
from engine.models.family import Family, Model
from engine.quant import AUTO, GGUF, canonical_or_auto
from engine.runtime.device import choose_dtype, dtype_name
from engine.runtime.errors import UsageError
from engine.runtime.files import read_json


@dataclass(frozen=True)
class Opened:
    """A model folder whose config and headers have been read, with the model on the meta device."""

    folder: Path
    family: Family
    config: ModelConfig
    tensors: Mapping[str, Stored]
    dtype: torch.dtype
    model: Model  # on the meta device
    quant: str  # the weight format
    is_saved: bool  # quantized, in a folder that `LLM.save` wrote
    adapter: Path | None  # folder of the adapter, which is not attached

    @property
    def format_name(self) -> str:
        """The weight format or dtype, as in the flags."""
        return dtype_name(self.dtype) if self.quant == "none" else self.quant

    @property
    def nbytes(self) -> int:
        """Bytes of the weights once they are loaded."""
        return sum(parameter.nbytes for parameter in self.model.parameters())


def open_model(
    name: str | Path,
    dtype: str = "auto",
    allow_pickle: bool = False,
    quant: str = AUTO,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    adapter: str | Path | None = None,
) -> Opened:
    """Find a model by folder or hub id, and build it without weights, with the formats that it will have on the device.

    dtype `auto`: as in config.json, else that of most of the file. A quantized checkpoint keeps its own weight format,
    a GGUF file in quant `auto` its blocks if the device supports them; `Opened.quant` is the format that was chosen.
    Raises `UsageError` if another one is requested. `adapter`: folder or hub id of an adapter; `name` can be one, too.
    """
    quant = canonical_or_auto(quant)
    located = locate(name, allow_pickle, adapter)
    folder = located.folder
    raw = read_json(folder / "config.json")
    prequantized = read_prequantized(raw)
    if prequantized is not None and quant not in (AUTO, "none", prequantized.quant):
        raise UsageError(
            f"{folder} is already quantized to {prequantized.quant}, which cannot become {quant}; leave out --quant"
        )
    quant = quant if prequantized is None else prequantized.quant
    family, config = configure({key: value for key, value in raw.items() if key != "quantization_config"})
    tensors: Mapping[str, Stored] = open_gguf(folder) or open_checkpoint(find_tensors(folder, allow_pickle))
    saved = prequantized is not None and prequantized.is_ours
    if prequantized is not None and not saved:
        tensors = dequantized_tensors(tensors)
    if not saved:
        named = {family.canonical(name): tensor for name, tensor in tensors.items()}
        config, tensors = resolve_tied_head(config, family, named)
    sizes = Counter({"float32": 0})
    for tensor in tensors.values():
        if tensor.dtype.is_floating_point and not isinstance(tensor, Decoded):
            sizes[dtype_name(tensor.dtype)] += tensor.nbytes
    chosen = choose_dtype(dtype, config.dtype or sizes.most_common(1)[0][0])
    with torch.device("meta"):
        model = family.build(config).to(chosen)
    dense = set() if prequantized is None else _dense_weights(model, family, tensors, saved)
    if quant in (AUTO, GGUF):
        kept = keep_blocks(model, family, tensors, device, quant == GGUF)
        return Opened(folder, family, config, tensors, chosen, model, GGUF if kept else "none", saved, located.adapter)
    assign_formats(model, quant, device, None if prequantized is None else prequantized.end_bits, dense)
    return Opened(folder, family, config, tensors, chosen, model, quant, saved, located.adapter)


def stored_format(name: str | Path) -> str | None:
    """The weight format in which a model is stored, `none` if it is not quantized; without asking the hub.

    A GGUF file's is `gguf`, whatever its types. None for a hub repository of which nothing has been downloaded.
    Raises `BareloopError` for a name that can be no model's, and for a format that is not supported.
    """
    folder = find_downloaded(name)
    if folder is None:
        return None
    if gguf_files(folder):
        return GGUF
    declared = read_prequantized(read_json(folder / "config.json"))
    return "none" if declared is None else declared.quant


def weights_fingerprint(folder: Path, adapter: Path | None = None) -> str:
    """A SHA-256 that identifies the weights of a folder that `find_model` returned (see safetensors.fingerprint).

    With the folder of an adapter: those weights with this adapter.
    """
    paths = set(gguf_files(folder))
    base = fingerprint(paths or {stored.file.path for stored in open_checkpoint(find_tensors(folder)).values()})
    return base if adapter is None else hashlib.sha256(f"{base} {adapter_fingerprint(adapter)}".encode()).hexdigest()


def _dense_weights(model: nn.Module, family: Family, tensors: Mapping[str, Stored], saved: bool) -> set[str]:
    """Names of the weights that a quantized checkpoint does not quantize; a stacked weight if any part is not."""
    if saved:
        weights = (name for name in tensors if name.endswith(".weight"))
        return {name for name in weights if f"{name.removesuffix('weight')}scales" not in tensors}
    return {
        name
        for name, sources in parameter_sources(model, family).items()
        if not all(isinstance(tensors.get(source.name), Dequantized) for source in sources)
    }
