"""Which format each matrix of a model takes."""

from __future__ import annotations

from collections.abc import Collection

import torch

from engine import kernels
from engine.layers.linear import Linear, Matrix
from engine.models.family import Model
from engine.quant import BITSANDBYTES, OWN
from engine.quant.base import Format
from engine.quant.panels import END_GROUP, GROUP, PANEL, Panels
from engine.quant.torch_packed import torch_format


def assign(
    model: Model, quant: str, device: torch.device, saved_ends: int | None = None, plain: Collection[str] = ()
) -> None:
    """Give every matrix of a model on the meta device its format; `none` leaves it as it is.

    In int4 the embedding and the head, on which a model's words depend most, have smaller groups; bitsandbytes leaves
    both as they are. Matrices whose shape a format does not take have 8 bits, or stay as they are. A saved model is
    in panels wherever it goes, its embedding and head of `saved_ends` bits; weights named in `plain` stay as they are.
    """
    if quant == "none":
        return
    ends, tied = (model.embed, model.head), model.head.weight is model.embed.weight
    panels = saved_ends is not None or device.type != "cpu" or (quant in OWN and kernels.serve())
    if quant in BITSANDBYTES:
        from engine.quant import bitsandbytes as bnb

        bnb.check(device)
    for name, matrix in model.named_modules():
        is_end = any(matrix is end for end in ends)
        is_inner = isinstance(matrix, Linear) and not matrix.exact
        if not isinstance(matrix, Matrix) or f"{name}.weight" in plain or not (is_end or is_inner):
            continue
        shape = matrix.rows, matrix.columns, matrix.dtype
        if quant in BITSANDBYTES:
            form = None if is_end else bnb.choose(quant, *shape)
        elif is_end:
            form = integers(8 if quant == "int8" else saved_ends or (4 if panels else 8), END_GROUP, *shape, panels)
        else:
            form = integers(8 if quant == "int8" else 4, GROUP, *shape, panels)
        if form is not None:
            matrix.hold(form, form.empty(torch.device("meta")))
    if tied:
        model.head.share(model.embed)


def integers(bits: int, group: int, rows: int, columns: int, dtype: torch.dtype, panels: bool) -> Format | None:
    """One of our own formats, of so many bits, or of 8, or none: as the shape allows."""
    if columns % 4:
        return None
    if bits == 4 and (columns % group or rows % PANEL):
        bits = 8
    return Panels(rows, columns, dtype, bits, group) if panels else torch_format(bits, rows, columns, dtype)
