"""Load weights: every checkpoint tensor is read directly into its parameter, or quantized or rearranged on the way.

If memory is short, tensors that the file has exactly as the model needs them are mapped instead. There is never a
second copy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from engine import kernels
from engine.checkpoints.adapters.files import attach_adapter, merge_adapters, open_adapter
from engine.checkpoints.gguf.tensors import GGUFTensor
from engine.checkpoints.mapping import ALL_ROWS, Source, match_tensors
from engine.checkpoints.opening import Opened
from engine.checkpoints.quantized import convert_from_panels, convert_to_panels, match_saved
from engine.checkpoints.tensor_file import Stored
from engine.layers.linear import Matrix
from engine.models.config import ModelConfig
from engine.models.family import Family
from engine.quant import BITSANDBYTES, BUILTIN
from engine.quant.base import ROW_MULTIPLE
from engine.quant.gguf import Records
from engine.quant.tables import is_supported
from engine.runtime.errors import BareloopError
from engine.runtime.memory import LargePages, free_memory

QUANTIZE_BYTES = 2**22  # float32 bytes of a matrix that are quantized at once


def plan_loading(opened: Opened) -> dict[str, list[tuple[Stored, Source]]]:
    """The stored tensors of every parameter. Raises `BareloopError` if they do not match config.json."""
    if opened.is_saved:
        return {name: [(stored, ALL_ROWS)] for name, stored in match_saved(opened.model, opened.tensors).items()}
    return match_tensors(opened.model, opened.family, opened.tensors)


def mappable(opened: Opened, sources: Mapping[str, list[tuple[Stored, Source]]], device: torch.device) -> set[str]:
    """The parameters that the file has exactly as the model needs them. Processes that map them share one copy."""
    quantized = {} if opened.is_saved else _matrices_to_quantize(opened.model)
    dtypes = {name: parameter.dtype for name, parameter in opened.model.named_parameters()}
    return {name for name, group in sources.items() if name not in quantized and _can_map(group, dtypes[name], device)}


def load_weights(opened: Opened, device: torch.device, copies: int = 1) -> None:
    """Load the weights of an opened model, frozen. Matrices with a format are quantized piece by piece.

    Its adapter is merged into float32 weights, and attached to others. `copies`: processes on this machine that load
    the model, now or soon. Raises `BareloopError` if the adapter does not fit the model, or the weights not into the
    free memory.
    """
    model, sources = opened.model, plan_loading(opened)
    adapter = None if opened.adapter is None else open_adapter(model, opened.family, opened.adapter)
    matrices = {} if opened.is_saved else _matrices_to_quantize(model)
    parameters = dict(model.named_parameters())
    free = free_memory(device)
    mapped = mappable(opened, sources, device)
    if free is not None and 2 * copies * sum(parameter.nbytes for parameter in parameters.values()) < free:
        mapped = set()  # weights in large pages are read faster than a mapped file
    if adapter is not None and opened.dtype.itemsize >= 4:  # merging changes the weights
        changed = {id(projection.linear.weight) for projection in adapter.projections.values()}
        mapped -= {name for name, parameter in parameters.items() if id(parameter) in changed}
    needed = sum(parameter.nbytes for name, parameter in parameters.items() if name not in mapped)
    if free is not None and needed > free:
        raise BareloopError(
            f"out of memory: the weights take {needed / 1e9:.1f} GB in {opened.format_name}, and {free / 1e9:.1f} GB "
            f"are free on {device}; {_suggest(opened, needed, free, device)}"
        )
    loaded: dict[int, nn.Parameter] = {}
    reads: list[tuple[Stored, Source, Tensor]] = []
    pages = LargePages()
    for name, group in sources.items():
        parameter = parameters[name]
        if name in matrices:
            continue
        if name in mapped:
            weight = group[0][0].view()
        else:
            weight = pages.place(torch.empty(parameter.shape, dtype=parameter.dtype, device=device))
            reads += [(stored, source, weight[source.rows]) for stored, source in group]
        loaded[id(parameter)] = nn.Parameter(weight, requires_grad=False)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(lambda job: _read(job[0], job[1], job[2], model.config), reads))
    for name, matrix in matrices.items():
        for leaf, tensor in _quantized(matrix, sources[name], opened.config, device, pages).items():
            loaded[id(getattr(matrix, leaf))] = nn.Parameter(tensor, requires_grad=False)
    replace_parameters(model, loaded)
    mapped_weights = {id(loaded[id(parameters[name])]) for name in mapped}
    for module in model.modules():
        if isinstance(module, Matrix):
            module.is_mapped = id(module.weight) in mapped_weights
    if opened.is_saved and device.type == "cpu" and opened.quant in BUILTIN and not kernels.available():
        convert_from_panels(model)
    if opened.is_saved and opened.quant in BITSANDBYTES and is_supported(device):
        convert_to_panels(model)
    if adapter is not None:
        attach_adapter(model, adapter)
        merge_adapters(model, lossless=True)
        model.requires_grad_(False)


def initialize_weights(
    model: nn.Module, family: Family, std: float, seed: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Give a model on the meta device seeded random weights, the same on every device.

    Matrices are normal with standard deviation `std`, norms one, biases zero, unless the family defines other values.
    """
    generator = torch.Generator().manual_seed(seed)
    created: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        weight = torch.zeros(parameter.shape) if name.endswith("bias") else torch.ones(parameter.shape)
        initial = next((make for ending, make in family.initial.items() if name.endswith(ending)), None)
        if initial is not None:
            weight = initial(parameter.shape, generator)
        elif parameter.dim() > 1:
            weight.normal_(0.0, std, generator=generator)
        created[id(parameter)] = nn.Parameter(weight.to(device, dtype))
    replace_parameters(model, created)


def _suggest(opened: Opened, needed: int, free: int, device: torch.device) -> str:
    """Suggest a dtype, format, device or model size that would fit."""
    if opened.quant == "none":
        halved = needed * 2 // opened.dtype.itemsize
        if halved < needed and halved <= free:
            return f"--dtype bfloat16 takes {halved / 1e9:.1f} GB"
        for quant, bits in (("int8", 8), ("int4", 5)):
            smaller = needed * bits // (8 * opened.dtype.itemsize)
            if smaller <= free:
                return f"--quant {quant} takes about {smaller / 1e9:.1f} GB"
    cpu_free = free_memory(torch.device("cpu")) if device.type == "cuda" else None
    if cpu_free is not None and needed <= cpu_free:
        return f"--device cpu has {cpu_free / 1e9:.1f} GB free"
    return f"use a model of at most {free / 2 / 1e9:.1f} billion parameters, in bfloat16"


def _read(stored: Stored, source: Source, target: Tensor, config: ModelConfig) -> None:
    """Read a stored tensor into its rows of a parameter."""
    if source.layout is None:
        stored.read_into(target)
        return
    tensor = torch.empty(stored.shape, dtype=stored.dtype)
    stored.read_into(tensor)
    target.copy_(source.layout.load(tensor, config))


def _matrices_to_quantize(model: nn.Module) -> dict[str, Matrix]:
    """The matrices with a format, by the names of their weights; a tied one is listed once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = (module for module in model.modules() if isinstance(module, Matrix) and module.format is not None)
    return {names[id(matrix.weight)]: matrix for matrix in matrices}


def _quantized(
    matrix: Matrix, sources: list[tuple[Stored, Source]], config: ModelConfig, device: torch.device, pages: LargePages
) -> dict[str, Tensor]:
    """Read a matrix piece by piece, quantized or in its own blocks: -> its tensors in its format."""
    weight_format = matrix.format
    assert weight_format is not None
    tensors = {}
    for name, tensor in weight_format.begin(device).items():  # scales may have values already
        tensors[name] = pages.place(tensor) if name == "weight" else pages.place(tensor).copy_(tensor)
    step = max(1, QUANTIZE_BYTES // (4 * matrix.columns * ROW_MULTIPLE)) * ROW_MULTIPLE
    if isinstance(weight_format, Records):
        for stored, source in sources:
            assert isinstance(stored, GGUFTensor)
            for first in range(0, stored.shape[0], step):
                blocks = stored.blocks(first, min(first + step, stored.shape[0]))
                weight_format.fill(tensors, source.rows.start + first, blocks)
        return tensors
    converted: dict[str, Tensor] = {}  # sources with a layout, whose rows are not the checkpoint's
    for first in range(0, matrix.rows, step):
        last = min(first + step, matrix.rows)
        piece = torch.empty(last - first, matrix.columns)
        for stored, source in sources:
            begin, end = max(first, source.rows.start), min(last, source.rows.stop)
            if begin >= end:
                continue
            target = piece[begin - first : end - first]
            rows = slice(begin - source.rows.start, end - source.rows.start)
            if source.layout is None:
                stored.row_range(rows.start, rows.stop).read_into(target)
                continue
            if source.name not in converted:
                converted[source.name] = torch.empty(source.rows.stop - source.rows.start, matrix.columns)
                _read(stored, source, converted[source.name], config)
            target.copy_(converted[source.name][rows])
        weight_format.fill(tensors, first, piece.to(device))
    return weight_format.finish(tensors)


def _can_map(sources: list[tuple[Stored, Source]], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the file has the parameter exactly as the model needs it."""
    stored, source = sources[0]
    if len(sources) > 1 or source.layout is not None or device.type != "cpu":
        return False
    return stored.aligned and stored.dtype == dtype


def replace_parameters(model: nn.Module, new: Mapping[int, nn.Parameter]) -> None:
    """Replace every parameter by the new one under its id; tied parameters stay tied."""
    for module in list(model.modules()):
        for leaf, old in list(module.named_parameters(recurse=False)):
            setattr(module, leaf, new[id(old)])
