"""A checkpoint's tensors -> a model's parameters, and back: rename, stack, tie, convert.

Every tensor is read straight into its place, stacked, converted, or sent to another device. Where memory is short,
what stands in the file just as the model wants it is mapped instead. There is never a second copy.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint import Stored, open_checkpoint, some, write_tensors
from engine.config import ModelConfig, read_json
from engine.device import choose_dtype, dtype_name, free_memory, use_large_pages
from engine.errors import BareloopError
from engine.hub import find_model
from engine.linear import Linear
from engine.models import configure
from engine.models.family import Family, Layout, Model
from engine.pickled import find_tensors


@dataclass(frozen=True)
class Part:
    """Where some rows of a parameter come from: one tensor of the checkpoint, `shape` as it stands there."""

    name: str
    rows: slice
    shape: tuple[int, ...]
    layout: Layout | None = None


@dataclass(frozen=True)
class Opened:
    """A model folder with its headers read: everything is known, no weight is in memory."""

    folder: Path
    family: Family
    config: ModelConfig
    tensors: Mapping[str, Stored]
    dtype: torch.dtype
    model: Model  # on the meta device


def open_model(name: str | Path, dtype: str = "auto", allow_pickle: bool = False) -> Opened:
    """Find a model by folder or hub id and build it without its weights.

    `auto` is the dtype that config.json names, else the one that most of the file is in.
    """
    folder = find_model(name, allow_pickle)
    family, config = configure(read_json(folder / "config.json"))
    stored = open_checkpoint(find_tensors(folder, allow_pickle))
    named = {family.canonical(name): tensor for name, tensor in stored.items()}
    config, tensors = settle_tie(config, family, named)
    sizes = Counter({"float32": 0})
    for tensor in tensors.values():
        if tensor.dtype.is_floating_point:
            sizes[dtype_name(tensor.dtype)] += tensor.nbytes
    chosen = choose_dtype(dtype, config.dtype or sizes.most_common(1)[0][0])
    with torch.device("meta"):
        model = family.build(config).to(chosen)
    return Opened(folder, family, config, tensors, chosen, model)


def parts(model: nn.Module, family: Family) -> dict[str, tuple[Part, ...]]:
    """For every parameter of the model, the checkpoint's tensors that it is stacked from, in order."""
    result: dict[str, tuple[Part, ...]] = {}
    for full_name, parameter in model.named_parameters():  # a tied one comes once
        path, _, leaf = full_name.rpartition(".")
        module = model.get_submodule(path)
        splits = module.splits if isinstance(module, Linear) else (len(parameter),)
        number = next((word for word in path.split(".") if word.isdigit()), "")
        pattern = path.replace(f".{number}.", ".*.") if number else path
        names, layout = family.names[pattern], family.layouts.get(pattern)
        sizes = splits if len(names) > 1 else (sum(splits),)
        result[full_name] = tuple(
            Part(
                f"{name.replace('*', number)}.{leaf}",
                slice(stop - size, stop),
                shape if layout is None else layout.shape(shape),
                layout,
            )
            for name, size, stop in zip(names, sizes, accumulate(sizes), strict=True)
            for shape in [(size, *parameter.shape[1:])]
        )
    return result


def settle_tie(
    config: ModelConfig, family: Family, tensors: Mapping[str, Stored]
) -> tuple[ModelConfig, Mapping[str, Stored]]:
    """A tied checkpoint brings the embedding, or only the head, or both: leave just the embedding.

    Where both are there and differ, they are not tied, whatever config.json says (as in transformers).
    """
    if not config.tie_word_embeddings:
        return config, tensors
    embedding, head = (f"{family.names[module][0]}.weight" for module in ("embed", "head"))
    if embedding in tensors and head in tensors and not tensors[embedding].equals(tensors[head]):
        return replace(config, tie_word_embeddings=False, raw={**config.raw, "tie_word_embeddings": False}), tensors
    if embedding not in tensors and head in tensors:
        tensors = {**tensors, embedding: tensors[head]}
    return config, {name: stored for name, stored in tensors.items() if name != head}


def match(model: nn.Module, family: Family, tensors: Mapping[str, Stored]) -> dict[str, list[tuple[Stored, Part]]]:
    """The stored tensors of every parameter, with the parts that they are.

    Raises one `BareloopError` that names all missing, misshapen and unexpected tensors.
    """
    layout = parts(model, family)
    wanted = {part.name: part for listed in layout.values() for part in listed}
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted and not name.endswith(family.ignored)]
    misshapen = [
        f"{name} is {dtype_name(tensors[name].dtype)} {list(tensors[name].shape)}, not float {list(part.shape)}"
        for name, part in wanted.items()
        if name in tensors and (tensors[name].shape != part.shape or not tensors[name].dtype.is_floating_point)
    ]
    problems = [
        f"{len(listed)} {kind} ({some(listed)})"
        for kind, listed in (("missing", missing), ("misshapen", misshapen), ("unexpected", unexpected))
        if listed
    ]
    if problems:
        raise BareloopError(f"the tensors do not fit config.json ({family.model_type}): {'; '.join(problems)}")
    return {name: [(tensors[part.name], part) for part in listed] for name, listed in layout.items()}


def load(opened: Opened, device: torch.device) -> None:
    """Give an opened model its weights, frozen."""
    model, dtype = opened.model, opened.dtype
    plan = match(model, opened.family, opened.tensors)
    mapped = {name for name, sources in plan.items() if _can_map(sources, dtype, device)}
    sizes = {name: dtype.itemsize * model.get_parameter(name).numel() for name in plan}
    free = free_memory(device)
    if free is not None and 2 * sum(sizes.values()) < free:
        mapped = set()  # what lies in large pages of our own is read faster than a mapped file
    needed = sum(size for name, size in sizes.items() if name not in mapped)
    if free is not None and needed > free:
        raise BareloopError(
            f"no memory: the weights take {needed / 1e9:.1f} GB in {dtype_name(dtype)}, and {free / 1e9:.1f} GB are "
            f"free on {device}; {_way_out(needed, free, dtype, device)}"
        )
    loaded: dict[int, nn.Parameter] = {}
    reads: list[tuple[Stored, Part, Tensor]] = []
    for name, sources in plan.items():
        parameter = model.get_parameter(name)
        if name in mapped:
            weight = sources[0][0].view()
        else:
            weight = use_large_pages(torch.empty(parameter.shape, dtype=dtype, device=device))
            reads += [(stored, part, weight[part.rows]) for stored, part in sources]
        loaded[id(parameter)] = nn.Parameter(weight, requires_grad=False)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(lambda job: _read(job[0], job[1], job[2], model.config), reads))
    _replace_parameters(model, loaded)


def initialize(
    model: nn.Module, family: Family, std: float, seed: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Give a model that was built on the meta device seeded random weights, the same on every device.

    Matrices are normal with this standard deviation, norms one, biases zero, unless the family begins otherwise.
    """
    generator = torch.Generator().manual_seed(seed)
    made: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        weight = torch.zeros(parameter.shape) if name.endswith("bias") else torch.ones(parameter.shape)
        own = next((make for ending, make in family.initial.items() if name.endswith(ending)), None)
        if own is not None:
            weight = own(parameter.shape, generator)
        elif parameter.dim() > 1:
            weight.normal_(0.0, std, generator=generator)
        made[id(parameter)] = nn.Parameter(weight.to(device, dtype))
    _replace_parameters(model, made)


def save(model: Model, family: Family, config: Mapping[str, Any], folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a Hugging Face folder: every stacking and rename undone, config.json and `files` beside.

    The folder appears at once and whole, or not at all; one that is not empty is left alone.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BareloopError(f"{folder} exists and is not empty; name a new folder")
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        draft.chmod(0o755)
        named = (
            (part.name, weight if part.layout is None else part.layout.save(weight, model.config).contiguous())
            for parameter, listed in parts(model, family).items()
            for part in listed
            for weight in [model.get_parameter(parameter).detach()[part.rows]]
        )
        write_tensors(named, draft)
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, content in files.items():
            (draft / name).write_bytes(content)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _way_out(needed: int, free: int, dtype: torch.dtype, device: torch.device) -> str:
    """What would fit where weights of `needed` bytes do not."""
    halved = needed * 2 // dtype.itemsize
    if halved < needed and halved <= free:
        return f"--dtype bfloat16 takes {halved / 1e9:.1f} GB"
    elsewhere = free_memory(torch.device("cpu")) if device.type == "cuda" else None
    if elsewhere is not None and needed <= elsewhere:
        return f"--device cpu has {elsewhere / 1e9:.1f} GB free"
    return f"use a model of at most {free / 2 / 1e9:.1f} billion parameters, in bfloat16"


def _read(stored: Stored, part: Part, place: Tensor, config: ModelConfig) -> None:
    """Fill some rows of a parameter."""
    if part.layout is None:
        stored.read_into(place)
        return
    there = torch.empty(stored.shape, dtype=stored.dtype)
    stored.read_into(there)
    place.copy_(part.layout.load(there, config))


def _can_map(sources: list[tuple[Stored, Part]], dtype: torch.dtype, device: torch.device) -> bool:
    only, part = sources[0]
    return len(sources) == 1 and part.layout is None and only.aligned and only.dtype == dtype and device.type == "cpu"


def _replace_parameters(model: nn.Module, new: Mapping[int, nn.Parameter]) -> None:
    """Swap every parameter for the new one under its id; what was tied stays tied."""
    for module in list(model.modules()):
        for leaf, old in list(module.named_parameters(recurse=False)):
            setattr(module, leaf, new[id(old)])
