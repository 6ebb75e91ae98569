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

from engine import kernels
from engine.checkpoint import Stored, open_checkpoint, some, write_tensors
from engine.config import ModelConfig, read_json
from engine.device import choose_dtype, dtype_name, free_memory, use_large_pages
from engine.errors import BareloopError, UsageError
from engine.formats import OWN, canonical
from engine.formats.base import TOGETHER
from engine.formats.bnb import Dequantized, as_numbers
from engine.formats.choice import assign
from engine.formats.folder import is_quantized, leave_panels, match_saved, read_prequantized, to_save
from engine.hub import find_model
from engine.linear import Linear, Matrix
from engine.models import configure
from engine.models.family import Family, Layout, Model
from engine.pickled import find_tensors

PIECE = 2**24  # bytes of a matrix that are quantized at once


@dataclass(frozen=True)
class Part:
    """Where some rows of a parameter come from: one tensor of the checkpoint, `shape` as it stands there."""

    name: str
    rows: slice
    shape: tuple[int, ...]
    layout: Layout | None = None


WHOLE = Part("", slice(None), ())  # all rows, as they stand


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


def parts(model: nn.Module, family: Family) -> dict[str, tuple[Part, ...]]:
    """For every parameter of the model, the checkpoint's tensors that it is stacked from, in order.

    The parameter of a matrix in a format is its weight, as numbers.
    """
    result: dict[str, tuple[Part, ...]] = {}
    for full_name, parameter in model.named_parameters():  # a tied one comes once
        path, _, leaf = full_name.rpartition(".")
        module = model.get_submodule(path)
        whole = tuple(parameter.shape)
        if isinstance(module, Matrix) and leaf in module.held():
            if leaf != "weight":
                continue
            whole = (module.rows, module.columns)
        splits = module.splits if isinstance(module, Linear) else whole[:1]
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
            for shape in [(size, *whole[1:])]
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


def plan(opened: Opened) -> dict[str, list[tuple[Stored, Part]]]:
    """Where every parameter's numbers are; raises one line where the checkpoint does not fit its config.json."""
    if opened.is_saved:
        return {name: [(stored, WHOLE)] for name, stored in match_saved(opened.model, opened.tensors).items()}
    return match(opened.model, opened.family, opened.tensors)


def load(opened: Opened, device: torch.device) -> None:
    """Give an opened model its weights, frozen; matrices in a format are quantized on the way, a piece at a time."""
    model, sources = opened.model, plan(opened)
    matrices = {} if opened.is_saved else _in_formats(model)
    parameters = dict(model.named_parameters())
    free = free_memory(device)
    mapped = {
        name for name, own in sources.items() if name not in matrices and _can_map(own, parameters[name].dtype, device)
    }
    if free is not None and 2 * sum(parameter.nbytes for parameter in parameters.values()) < free:
        mapped = set()  # what lies in large pages of our own is read faster than a mapped file
    needed = sum(parameter.nbytes for name, parameter in parameters.items() if name not in mapped)
    if free is not None and needed > free:
        raise BareloopError(
            f"no memory: the weights take {needed / 1e9:.1f} GB in {opened.told_format}, and {free / 1e9:.1f} GB are "
            f"free on {device}; {_way_out(opened, needed, free, device)}"
        )
    loaded: dict[int, nn.Parameter] = {}
    reads: list[tuple[Stored, Part, Tensor]] = []
    for name, own in sources.items():
        parameter = parameters[name]
        if name in matrices:
            continue
        if name in mapped:
            weight = own[0][0].view()
        else:
            weight = use_large_pages(torch.empty(parameter.shape, dtype=parameter.dtype, device=device))
            reads += [(stored, part, weight[part.rows]) for stored, part in own]
        loaded[id(parameter)] = nn.Parameter(weight, requires_grad=False)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(lambda job: _read(job[0], job[1], job[2], model.config), reads))
    for name, matrix in matrices.items():
        for leaf, tensor in _quantized(matrix, sources[name], opened.config, device).items():
            loaded[id(getattr(matrix, leaf))] = nn.Parameter(tensor, requires_grad=False)
    _replace_parameters(model, loaded)
    if opened.is_saved and device.type == "cpu" and opened.quant in OWN and not kernels.serve():
        leave_panels(model)


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

    A quantized model is written as it is in memory (`formats.folder`), and its config declares that.
    The folder appears at once and whole, or not at all; one that is not empty is left alone.
    """
    check_new(folder)
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
        write_tensors(to_save(model) if is_quantized(model) else named, draft)
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, content in files.items():
            (draft / name).write_bytes(content)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def check_new(folder: Path) -> None:
    """Raise one line where a folder holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BareloopError(f"{folder} exists and is not empty; name a new folder")


def _way_out(opened: Opened, needed: int, free: int, device: torch.device) -> str:
    """What would fit where weights of `needed` bytes do not."""
    if opened.quant == "none":
        halved = needed * 2 // opened.dtype.itemsize
        if halved < needed and halved <= free:
            return f"--dtype bfloat16 takes {halved / 1e9:.1f} GB"
        for quant, bits in (("int8", 8), ("int4", 5)):
            smaller = needed * bits // (8 * opened.dtype.itemsize)
            if smaller <= free:
                return f"--quant {quant} takes about {smaller / 1e9:.1f} GB"
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


def _in_formats(model: nn.Module) -> dict[str, Matrix]:
    """The matrices that are quantized while they are loaded, by the names of their weights; a tied one comes once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = (module for module in model.modules() if isinstance(module, Matrix) and module.format is not None)
    return {names[id(matrix.weight)]: matrix for matrix in found}


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


def _quantized(
    matrix: Matrix, sources: list[tuple[Stored, Part]], config: ModelConfig, device: torch.device
) -> dict[str, Tensor]:
    """A matrix's tensors in its format, from some rows of the checkpoint after another."""
    form = matrix.format
    assert form is not None
    held = {name: use_large_pages(tensor) for name, tensor in form.begin(device).items()}
    step = max(1, PIECE // (4 * matrix.columns * TOGETHER)) * TOGETHER
    turned: dict[str, Tensor] = {}  # parts whose rows are not the checkpoint's
    for first in range(0, matrix.rows, step):
        last = min(first + step, matrix.rows)
        piece = torch.empty(last - first, matrix.columns)
        for stored, part in sources:
            begin, end = max(first, part.rows.start), min(last, part.rows.stop)
            if begin >= end:
                continue
            place, own = piece[begin - first : end - first], slice(begin - part.rows.start, end - part.rows.start)
            if part.layout is None:
                stored.some_rows(own.start, own.stop).read_into(place)
                continue
            if part.name not in turned:
                turned[part.name] = torch.empty(part.rows.stop - part.rows.start, matrix.columns)
                _read(stored, part, turned[part.name], config)
            place.copy_(turned[part.name][own])
        form.fill(held, first, piece.to(device))
    return form.finish(held)


def _can_map(sources: list[tuple[Stored, Part]], dtype: torch.dtype, device: torch.device) -> bool:
    only, part = sources[0]
    return len(sources) == 1 and part.layout is None and only.aligned and only.dtype == dtype and device.type == "cpu"


def _replace_parameters(model: nn.Module, new: Mapping[int, nn.Parameter]) -> None:
    """Swap every parameter for the new one under its id; what was tied stays tied."""
    for module in list(model.modules()):
        for leaf, old in list(module.named_parameters(recurse=False)):
            setattr(module, leaf, new[id(old)])
