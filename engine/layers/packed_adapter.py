"""LoRA adapters as products without gradients use them, alone and for an operator that computes several products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.quant.panels import PANEL
from engine.runtime.memory import use_large_pages


@dataclass(eq=False)
class PackedAdapter:
    """A copy of an adapter in the dtype of the weight, with the scale in B.

    For the C++ kernels (engine/kernels/cpu/adapter.h) `data` has A and each pair's B in panels of 32 rows, end to end.
    """

    a: Tensor  # [sum of ranks, in]; on a CPU a part of `data`
    b: Tensor  # [rows, sum of ranks], zeros outside of each pair's rows and columns
    rows: slice  # of the product, from the first pair's to the last one's
    data: Tensor | None  # None: not on a CPU
    sizes: Tensor  # [pairs, 5]: index of the matrix in the operator (0), in, first row, height, rank
    users: WeakSet[JoinedAdapters] = field(default_factory=WeakSet)  # that have a copy of this one

    @staticmethod
    def of(a: Tensor, scaled: Sequence[tuple[slice, Tensor]]) -> PackedAdapter:
        """Pack A of all pairs [sum of ranks, in], and each pair's rows and s B [height, rank]."""
        rows = slice(scaled[0][0].start, scaled[-1][0].stop)
        b, parts, sizes, first = a.new_zeros(rows.stop - rows.start, len(a)), [a.flatten()], [], 0
        for of_pair, each in scaled:
            height, rank = each.shape
            b[of_pair.start - rows.start :][:height, first : first + rank] = each
            panels = F.pad(each, (0, 0, 0, -height % PANEL)).view(-1, PANEL, rank)
            parts.append(panels.transpose(1, 2).flatten())  # [panels, rank, 32]
            sizes.append([0, a.shape[1], of_pair.start, height, rank])
            first += rank
        packed = PackedAdapter(a, b, rows, None, torch.tensor(sizes))
        if a.device.type == "cpu":
            packed.move(torch.cat(parts))
        return packed

    def move(self, data: Tensor) -> None:
        """Use `data`, which has the same content, in place of the present copy."""
        self.a, self.data = data[: self.a.numel()].view(self.a.shape), data

    def mark_changed(self) -> None:
        """The adapter's parameters change: its joined copies must not be used again."""
        for joined in self.users:
            joined.has_changed = True

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """y [N, out] += s x Aᵀ Bᵀ in place, in two products -> y."""
        y[:, self.rows].addmm_(x @ self.a.T, self.b.T)
        return y


class Packable(Protocol):
    """An `Adapter`."""

    def packed(self, dtype: torch.dtype) -> PackedAdapter:
        """Its packed copy."""


@dataclass(eq=False)
class JoinedAdapters:
    """The packed copies of several matrices' adapters, in one piece of memory for the C++ kernels."""

    adapters: list[nn.Module | None]  # of all matrices
    dtype: torch.dtype
    packed: list[PackedAdapter]
    data: Tensor | None  # of all, end to end; None: there are none, or not on a CPU
    sizes: Tensor | None  # of all
    parameters: list[nn.Parameter]  # of all adapters
    has_changed: bool = False  # whether any parameter has changed since

    @staticmethod
    def of(adapters: list[nn.Module | None], indices: list[int], dtype: torch.dtype) -> JoinedAdapters:
        """Join the adapters of matrices with these indices in an operator.

        Their packed copies become parts of the joined one, so that there is no second copy.
        """
        present = [
            (index, cast("Packable", each)) for index, each in zip(indices, adapters, strict=True) if each is not None
        ]
        packed = [adapter.packed(dtype) for _, adapter in present]
        data = sizes = None
        with torch.inference_mode(False):
            parts = [each.data for each in packed if each.data is not None]
            if parts:
                data = use_large_pages(parts[0].new_empty(sum(map(len, parts))))
                torch.cat(parts, out=data)
                first = [torch.tensor([index, 0, 0, 0, 0]) for index, _ in present]
                sizes = torch.cat([each.sizes + index for each, index in zip(packed, first, strict=True)])
                for each, part in zip(packed, torch.split(data, [len(part) for part in parts]), strict=True):
                    each.move(part)
        parameters = [parameter for each in adapters if each is not None for parameter in each.parameters()]
        joined = JoinedAdapters(adapters, dtype, packed, data, sizes, parameters)
        for each in packed:
            each.users.add(joined)
        return joined

    @property
    def is_current(self) -> bool:
        """Whether the parameters are frozen, and have not changed since."""
        return not self.has_changed and not any(parameter.requires_grad for parameter in self.parameters)


class AdaptersOf:
    """The adapters that matrices have at present: those that are attached or removed later are seen."""

    def __init__(self, linears: Iterable[tuple[int, nn.Module]]) -> None:
        """`linears`: with their indices in an operator."""
        indexed = list(linears)
        self._indices = [index for index, _ in indexed]
        self._children = [linear._modules for _, linear in indexed]
        self._joined: JoinedAdapters | None = None

    def joined(self, dtype: torch.dtype) -> JoinedAdapters:
        """The adapters packed and joined: the same ones again if nothing has changed."""
        adapters, joined = [children["adapter"] for children in self._children], self._joined
        if joined is None or not joined.is_current or joined.dtype != dtype or joined.adapters != adapters:
            joined = self._joined = JoinedAdapters.of(adapters, self._indices, dtype)
        return joined
