"""LoRA adapters of a model: attached to its matrices, read and written in peft's files, merged into dense weights."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from engine.checkpoints.adapters.config import (
    CONFIG,
    MERGE_IN_PEFT,
    PICKLED_WEIGHTS,
    WEIGHTS,
    LoraConfig,
    read_adapter_config,
)
from engine.checkpoints.adapters.targets import Projection, is_unadapted, name_ends, names_of, projections, select
from engine.checkpoints.safetensors import SafetensorsFile, abbreviate, fingerprint
from engine.checkpoints.tensor_file import Stored
from engine.layers.linear import Linear
from engine.layers.lora import Adapter, Pair
from engine.models.family import Family, Model
from engine.runtime.device import dtype_name
from engine.runtime.errors import BareloopError
from engine.runtime.files import write_atomic

PREFIX = "base_model.model."  # of tensor names in peft's files
A, B = "lora_A.weight", "lora_B.weight"
BASE_WEIGHT = "lm_head.base_layer.weight"  # an unchanged copy, which peft writes with the adapter of a head


@dataclass(frozen=True)
class AdapterFiles:
    """A folder's adapter that fits a model: the projections that it changes, and their A and B in the file."""

    folder: Path
    family: Family
    config: LoraConfig
    projections: dict[str, Projection]  # by their names in the checkpoint
    tensors: dict[str, tuple[Stored, Stored]]

    @property
    def parameters(self) -> int:
        """Number of the adapter's parameters."""
        return sum(stored.nbytes // stored.dtype.itemsize for pair in self.tensors.values() for stored in pair)


def add_adapters(model: Model, family: Family, config: LoraConfig, seed: int = 0) -> None:
    """Attach initialized adapters to the targets, and freeze everything else.

    Raises `BareloopError` if a target is no linear layer of the model, or cannot be adapted.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for adapter in _attach(select(model, family, config, strict=True), family, config):
        adapter.initialize(generator)


def adapter_tensors(model: Model, family: Family) -> dict[str, Tensor]:
    """A [r, in] and B [out, r] of all adapters, live and in float32, by their names in peft's files.

    Where the checkpoint has rows in another order than the model (GPT-NeoX), B is a copy in the checkpoint's order.
    """
    result: dict[str, Tensor] = {}
    for name, projection, _, a, b in _adapted(model, family):
        module = f"{PREFIX}{family.module(name)}"
        result |= {f"{module}.{A}": a, f"{module}.{B}": projection.save_b(b, model)}
    return result


def save_adapter(
    model: Model, family: Family, config: LoraConfig, folder: Path, files: Mapping[str, bytes] | None = None
) -> None:
    """Write peft's two files, and `files` by name. Each replaces an older one atomically, the config last.

    Raises `BareloopError` if the model has no adapter, or the folder cannot be written.
    """
    from safetensors.torch import save

    tensors = {
        name: tensor.detach().float().cpu().contiguous() for name, tensor in adapter_tensors(model, family).items()
    }
    if not tensors:
        raise BareloopError("the model has no adapter to save")
    for file, data in (files or {}).items():
        write_atomic(folder / file, data)
    write_atomic(folder / WEIGHTS, save(tensors, {"format": "pt"}))
    adapted = {name: projection for name, projection, *_ in _adapted(model, family)}
    transposed = any(each.layout is not None and each.layout.transposes for each in adapted.values())
    content = _with_exact_patterns(config, family, adapted).as_json(name_ends(model, family, adapted), transposed)
    write_atomic(folder / CONFIG, json.dumps(content, indent=2) + "\n")


def open_adapter(model: Model, family: Family, folder: Path) -> AdapterFiles:
    """Read the config and the header of peft's files, and match them with the model, whose weights are not needed.

    Raises `BareloopError` if they are broken, not plain LoRA, or do not fit the model.
    """
    config = read_adapter_config(folder)
    if not (folder / WEIGHTS).is_file():
        way_out = f"; its {PICKLED_WEIGHTS} is a pickle: load it in peft and save it again"
        raise BareloopError(f"{folder} has no {WEIGHTS}{way_out if (folder / PICKLED_WEIGHTS).exists() else ''}")
    made_for = f", which was made for {config.base}," if config.base else ""
    try:
        chosen = select(model, family, config, strict=False)
    except BareloopError as error:
        raise BareloopError(f"the adapter in {folder}{made_for} does not fit: {error}") from None
    stored = {
        family.canonical(name.removeprefix(PREFIX)): tensor
        for name, tensor in SafetensorsFile(folder / WEIGHTS).tensors.items()
        if not name.endswith(BASE_WEIGHT)
    }
    stored = {name: tensor for name, tensor in stored.items() if not name.endswith(family.ignored)}  # not loaded
    shapes: dict[str, tuple[int, int]] = {}
    for name, projection in chosen.items():
        rank = config.rank_of(names_of(name, family))
        shapes |= {f"{name}.{A}": (rank, projection.linear.columns)}
        shapes |= {f"{name}.{B}": (projection.rows.stop - projection.rows.start, rank)}
    misshapen = [
        f"{name} is {dtype_name(stored[name].dtype)} {list(stored[name].shape)}, not float {list(shape)}"
        for name, shape in shapes.items()
        if name in stored and (stored[name].shape != shape or not stored[name].dtype.is_floating_point)
    ]
    missing, unexpected = [[*(a.keys() - b.keys())] for a, b in ((shapes, stored), (stored, shapes))]
    problems = [
        f"{len(names)} {kind} ({abbreviate(sorted(names))})"
        for kind, names in (("missing", missing), ("misshapen", misshapen), ("unexpected", unexpected))
        if names
    ]
    if problems:
        has_weights = any("lora_" not in name for name in unexpected)
        raise BareloopError(
            f"the tensors of {folder}{made_for} do not fit its {CONFIG} and the base model ({family.model_type}): "
            f"{'; '.join(problems)}{f'; whole weights are not implemented: {MERGE_IN_PEFT}' if has_weights else ''}"
        )
    tensors = {name: (stored[f"{name}.{A}"], stored[f"{name}.{B}"]) for name in chosen}
    for name in [name for name in chosen if is_unadapted(name, family)]:
        _, b = tensors.pop(name)
        chosen.pop(name)
        values = torch.empty(b.shape)
        b.read_into(values)
        if values.any():
            raise BareloopError(
                f"{folder} adapts {name}, which transformers leaves out of a {family.model_type} model: train it again "
                "without that target"
            )
    return AdapterFiles(folder, family, config, chosen, tensors)


@torch.no_grad()  # views of A that record gradients cannot be written to in pieces, as they are converted
def attach_adapter(model: Model, files: AdapterFiles) -> None:
    """Attach the adapter that `open_adapter` has matched with this model, and read its tensors, of any dtype.

    Raises `BareloopError` if a value is not finite.
    """
    _attach(files.projections, files.family, files.config)
    for name, projection in files.projections.items():
        adapter = projection.linear.adapter
        assert adapter is not None
        stored_a, stored_b = files.tensors[name]
        target_a, target_b = next((a, b) for pair, a, b in adapter if pair.rows == projection.rows)
        b = torch.empty(stored_b.shape)
        stored_b.read_into(b)
        stored_a.read_into(target_a)
        target_b.copy_(projection.load_b(b, model))
        if not (target_a.isfinite().all() and target_b.isfinite().all()):
            raise BareloopError(f"{files.folder / WEIGHTS}: the tensors of {name} have values that are not finite")


def load_adapter(model: Model, family: Family, folder: Path) -> LoraConfig:
    """Attach the adapter of peft's files in a folder. Raises `BareloopError` as `open_adapter` does."""
    files = open_adapter(model, family, folder)
    attach_adapter(model, files)
    return files.config


def merge_adapters(model: Model, lossless: bool = False) -> float:
    """W += s B A for all adapters, which are removed (see `Linear.merge_adapter`).

    -> what rounding to the weights' dtype loses of the change, as a share of its norm. A change is often smaller than
    the distance of neighbouring numbers in bfloat16. With `lossless` only float32 weights are merged.

    Raises `BareloopError` if a weight is quantized, unless `lossless`.
    """
    adapted = [module for module in model.modules() if isinstance(module, Linear) and module.adapter is not None]
    if lossless:
        adapted = [linear for linear in adapted if linear.format is None and linear.dtype.itemsize >= 4]
    if any(linear.format is not None for linear in adapted):
        raise BareloopError("an adapter is not merged into quantized weights; load the base model with --quant none")
    rounding = [linear.merge_adapter() for linear in adapted]
    lost, changed = (sum(squares) for squares in zip(*rounding, strict=True)) if rounding else (0.0, 0.0)
    return math.sqrt(lost / changed) if changed else 0.0


def adapter_fingerprint(folder: Path) -> str:
    """A SHA-256 that identifies what the adapter in a folder computes."""
    identity = f"{read_adapter_config(folder).identity()}\n{fingerprint([folder / WEIGHTS])}"
    return hashlib.sha256(identity.encode()).hexdigest()


def _attach(projections: Mapping[str, Projection], family: Family, config: LoraConfig) -> list[Adapter]:
    """Attach adapters, not initialized, to these projections; those of one Linear share its adapter."""
    pairs: dict[Linear, list[Pair]] = {}
    for name, projection in projections.items():
        if projection.linear.adapter is not None:
            raise BareloopError("the model has an adapter already; merge it first")
        names = names_of(name, family)
        pair = Pair(projection.rows, config.rank_of(names), config.scale_of(names))
        pairs.setdefault(projection.linear, []).append(pair)
    adapters = []
    for linear, of_linear in pairs.items():
        linear.adapter = Adapter(linear.columns, of_linear, config.dropout, linear.weight.device)
        adapters.append(linear.adapter)
    return adapters


def _adapted(model: Model, family: Family) -> Iterator[tuple[str, Projection, Pair, Tensor, Tensor]]:
    """The projections that have adapters, by name, each with its pair, A and B."""
    for name, projection in projections(model, family)[0].items():
        for pair, a, b in projection.linear.adapter or ():
            if pair.rows == projection.rows:
                yield name, projection, pair, a, b


def _with_exact_patterns(config: LoraConfig, family: Family, adapted: Iterable[str]) -> LoraConfig:
    """The config with patterns for modules whose patterns match only their names in the checkpoint, unlike in peft."""
    ranks, alphas = dict[str, int](), dict[str, float]()
    for name in adapted:
        module, end = family.module(name), re.escape(family.module(name))
        if config.rank_of([module]) != (rank := config.rank_of([module, name])):
            ranks[end] = rank
        if config.alpha_of([module]) != (alpha := config.alpha_of([module, name])):
            alphas[end] = alpha
    return replace(
        config, rank_pattern=ranks | dict(config.rank_pattern), alpha_pattern=alphas | dict(config.alpha_pattern)
    )
