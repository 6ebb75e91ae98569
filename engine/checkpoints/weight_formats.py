"""Decide the weight format of each matrix of a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from engine import kernels
from engine.checkpoints.gguf.tensors import GGUFTensor
from engine.checkpoints.mapping import Source, parameter_sources
from engine.checkpoints.tensor_file import Stored
from engine.layers.linear import Linear, Matrix
from engine.models.family import Family, Model
from engine.quant import BITSANDBYTES, BUILTIN
from engine.quant import gguf as blocks
from engine.quant.base import Format
from engine.quant.panels import END_GROUP, GROUP, PANEL, Panels
from engine.quant.torch_packed import torch_packed_format
from engine.runtime.errors import UsageError


def assign_formats(
    model: Model, quant: str, device: torch.device, saved_end_bits: int | None = None, dense: Collection[str] = ()
) -> None:
    """Set the format of every matrix of a model on the meta device; `none` leaves all dense.

    In int4 the embedding and the head, to which the output is most sensitive, have smaller groups; bitsandbytes keeps
    both dense. A matrix whose shape a format does not support gets 8 bits, or stays dense. nf4 and fp4 are in panels
    where there are kernels for them. A saved model is in panels (nf4 and fp4: in bitsandbytes' layout) on every device,
    with `saved_end_bits` for embedding and head; weights named in `dense` stay dense.
    """
    if quant == "none":
        return
    tied = model.head.weight is model.embed.weight
    panels = saved_end_bits is not None or device.type != "cpu" or (quant in BUILTIN and kernels.available())
    if quant in BITSANDBYTES:
        from engine.quant import bitsandbytes
        from engine.quant.tables import in_panels, is_supported

        bitsandbytes.check(device)
    for name, matrix in model.named_modules():
        if not isinstance(matrix, Matrix) or f"{name}.weight" in dense or not _may_quantize(matrix, model):
            continue
        is_end = matrix in (model.embed, model.head)
        shape = matrix.rows, matrix.columns, matrix.dtype
        if quant in BITSANDBYTES:
            weight_format = None if is_end else bitsandbytes.choose_format(quant, *shape)
            if saved_end_bits is None and is_supported(device):
                weight_format = in_panels(weight_format) or weight_format
        elif is_end:
            weight_format = builtin_format(
                8 if quant == "int8" else saved_end_bits or (4 if panels else 8), END_GROUP, *shape, panels
            )
        else:
            weight_format = builtin_format(8 if quant == "int8" else 4, GROUP, *shape, panels)
        if weight_format is not None:
            matrix.set_format(weight_format, weight_format.empty(torch.device("meta")))
    if tied:
        model.head.share(model.embed)


def keep_blocks(
    model: Model, family: Family, tensors: Mapping[str, Stored], device: torch.device, required: bool = False
) -> bool:
    """Set the format of the matrices whose blocks in a GGUF file can be kept, on a CPU with the C++ kernels.

    Returns whether there are any. Raises `UsageError` if it is `required` and there are none; then a CPU without the
    kernels is supported, too.
    """
    formats: dict[Matrix, Format] = {}
    for name, sources in parameter_sources(model, family).items():
        path, _, leaf = name.rpartition(".")
        matrix = model.get_submodule(path)
        if isinstance(matrix, Matrix) and leaf == "weight" and _may_quantize(matrix, model):
            weight_format = _blocks_format(matrix, [(tensors.get(source.name), source) for source in sources])
            if weight_format is not None:
                formats[matrix] = weight_format
    if required and device.type != "cpu":
        raise UsageError(f"--quant gguf is for a CPU, not {device}; leave out --quant")
    if required and not formats:
        raise UsageError("--quant gguf keeps the blocks of a GGUF file, and this model has none; leave out --quant")
    if not formats or device.type != "cpu" or not (kernels.available() or required):
        return False
    tied = model.head.weight is model.embed.weight
    for matrix, weight_format in formats.items():
        matrix.set_format(weight_format, weight_format.empty(torch.device("meta")))
    if tied:
        model.head.share(model.embed)
    return True


def _blocks_format(matrix: Matrix, sources: list[tuple[Stored | None, Source]]) -> Format | None:
    """The format that keeps a matrix as these tensors have it; None if that is not supported."""
    parts = [
        (stored.info.kind, source.rows.stop - source.rows.start)
        for stored, source in sources
        if isinstance(stored, GGUFTensor) and stored.has_blocks and source.layout is None
    ]
    return blocks.choose_format(parts, matrix.columns, matrix.dtype) if len(parts) == len(sources) else None


def _may_quantize(matrix: Matrix, model: Model) -> bool:
    return matrix in (model.embed, model.head) or (isinstance(matrix, Linear) and not matrix.exact)


def builtin_format(bits: int, group: int, rows: int, columns: int, dtype: torch.dtype, panels: bool) -> Format | None:
    """int8 or int4 for a matrix of this shape. 4 bits become 8 if the shape requires it; None if neither fits."""
    if columns % 4:
        return None
    if bits == 4 and (columns % group or rows % PANEL):
        bits = 8
    return Panels(rows, columns, dtype, bits, group) if panels else torch_packed_format(bits, rows, columns, dtype)
