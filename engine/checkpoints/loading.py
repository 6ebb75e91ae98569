"""Checkpoint tensors to parameters: each is read straight into its place, or quantized on the way."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from engine import kernels
from engine.checkpoints.mapping import WHOLE, Part, match
from engine.checkpoints.opening import Opened
from engine.checkpoints.quantized import leave_panels, match_saved
from engine.checkpoints.safetensors import Stored
from engine.layers.linear import Matrix
from engine.models.config import ModelConfig
from engine.models.family import Family
from engine.quant import OWN
from engine.quant.base import TOGETHER
from engine.runtime.errors import BareloopError
from engine.runtime.memory import free_memory, use_large_pages

PIECE = 2**24  # bytes of a matrix that are quantized at once


def plan_loading(opened: Opened) -> dict[str, list[tuple[Stored, Part]]]:
    """Where every parameter's numbers are; raises one line where the checkpoint does not fit its config.json."""
    if opened.is_saved:
        return {name: [(stored, WHOLE)] for name, stored in match_saved(opened.model, opened.tensors).items()}
    return match(opened.model, opened.family, opened.tensors)


def load_weights(opened: Opened, device: torch.device) -> None:
    """Give an opened model its weights, frozen; matrices in a format are quantized on the way, a piece at a time."""
    model, sources = opened.model, plan_loading(opened)
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
    replace_parameters(model, loaded)
    if opened.is_saved and device.type == "cpu" and opened.quant in OWN and not kernels.serve():
        leave_panels(model)


def initialize_weights(
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
    replace_parameters(model, made)


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


def replace_parameters(model: nn.Module, new: Mapping[int, nn.Parameter]) -> None:
    """Swap every parameter for the new one under its id; what was tied stays tied."""
    for module in list(model.modules()):
        for leaf, old in list(module.named_parameters(recurse=False)):
            setattr(module, leaf, new[id(old)])
