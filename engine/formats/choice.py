"""Which format each matrix of a model takes."""

from __future__ import annotations

import torch

from engine import kernels
from engine.formats import BITSANDBYTES, OWN
from engine.formats.base import Format
from engine.formats.panels import GROUP, PANEL, Panels
from engine.formats.torch_packed import torch_format
from engine.linear import Linear, Matrix
from engine.models.family import Model


def assign(model: Model, quant: str, device: torch.device, saved: bool, plain: set[str]) -> None:
    """Give every matrix of a model on the meta device its format; `none` leaves it as it is.

    int4 keeps the embedding and the head, on which a model's words depend most, at 8 bits; bitsandbytes leaves
    both as they are. Matrices whose shape a format does not take have 8 bits, or stay as they are. A `saved` model
    is in panels, wherever it goes; the weights named in `plain` stay as they are.
    """
    if quant == "none":
        return
    ends, tied = (model.embed, model.head), model.head.weight is model.embed.weight
    panels = saved or device.type != "cpu" or (quant in OWN and kernels.serve())
    matrices = {name: module for name, module in model.named_modules() if isinstance(module, Matrix)}
    if quant in BITSANDBYTES:
        from engine.formats import bnb

        bnb.check(device)
    for name, matrix in matrices.items():
        is_end = any(matrix is end for end in ends)
        if f"{name}.weight" in plain or (not is_end and not (isinstance(matrix, Linear) and not matrix.exact)):
            continue
        if quant in BITSANDBYTES:
            form = None if is_end else bnb.choose(quant, matrix.rows, matrix.columns, matrix.dtype)
        else:
            four = quant == "int4" and not is_end
            form = integers(4 if four else 8, matrix.rows, matrix.columns, matrix.dtype, panels)
        if form is not None:
            matrix.hold(form, form.empty(torch.device("meta")))
    if tied:
        model.head.share(model.embed)


def integers(bits: int, rows: int, columns: int, dtype: torch.dtype, panels: bool) -> Format | None:
    """One of our own formats, of so many bits, or of 8, or none: as the shape allows."""
    if columns % 4:
        return None
    if bits == 4 and (columns % GROUP or rows % PANEL):
        bits = 8
    return Panels(rows, columns, dtype, bits) if panels else torch_format(bits, rows, columns, dtype)
