"""LoRA (Hu et al. 2021): y = x Wᵀ + s dropout(x) Aᵀ Bᵀ, on top of a frozen weight W in any format.

A `Linear` can stack several projections of one input by rows; each of them can have its own pair of A and B.

The parameters are float32, for training. Products without gradients use a packed copy in the dtype of the weight. It is
kept if the parameters are frozen (`requires_grad_(False)`); if not, it is made for each product, since an optimizer may
change them at any time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.layers.packed_adapter import PackedAdapter

MERGE_BYTES = 2**22  # of a weight's rows in float32 that are merged at once, so that they stay in a cache


@dataclass(frozen=True)
class Pair:
    """One A [rank, in] and B [height, rank], for `rows` of a Linear's output. `scale` is s."""

    rows: slice
    rank: int
    scale: float

    @property
    def height(self) -> int:
        """Number of rows."""
        return int(self.rows.stop - self.rows.start)


class Adapter(nn.Module):
    """The pairs of one Linear: `a` [sum of ranks, in] has all A end to end, so that one product reads the input once.

    `b` has the B [height, rank] of each pair. Both are float32, whatever the dtype of the weight, and not initialized.
    The pairs' rows are disjoint and ascending. `dropout` is the share of the branch's inputs that are dropped while
    gradients are recorded. Code that writes into the parameters while they are frozen must call `forget_packed`.
    """

    def __init__(self, in_features: int, pairs: Sequence[Pair], dropout: float, device: torch.device) -> None:
        super().__init__()
        self.pairs, self.dropout = tuple(pairs), dropout
        self.a = nn.Parameter(torch.empty(sum(pair.rank for pair in pairs), in_features, device=device))
        self.b = nn.ParameterList(torch.empty(pair.height, pair.rank, device=device) for pair in pairs)
        self._packed: dict[torch.dtype, PackedAdapter] = {}  # what is kept

    def initialize(self, generator: torch.Generator) -> None:
        """A: uniform within ± 1 / √in, as in peft; B: zeros, so that at first nothing changes."""
        bound = 1 / math.sqrt(self.a.shape[1])
        with torch.no_grad():
            values = torch.empty(self.a.shape).uniform_(-bound, bound, generator=generator)
            self.a.copy_(values)
            for b in self.b:
                b.zero_()
        self.forget_packed()

    def __iter__(self) -> Iterator[tuple[Pair, Tensor, Tensor]]:
        """Each pair with its A and B."""
        parts = torch.split(self.a, [pair.rank for pair in self.pairs])
        return zip(self.pairs, parts, self.b, strict=True)

    @property
    def is_frozen(self) -> bool:
        """Whether no parameter can be trained."""
        return not (self.a.requires_grad or any(b.requires_grad for b in self.b))

    def packed(self, dtype: torch.dtype) -> PackedAdapter:
        """The packed copy of the parameters: the same one again while they are frozen."""
        packed = self._packed.get(dtype) if self.is_frozen else None
        if packed is None:
            with torch.inference_mode(False), torch.no_grad():
                scaled = [(pair.rows, (b.detach() * pair.scale).to(dtype)) for pair, _, b in self]
                packed = PackedAdapter.of(self.a.detach().to(dtype, copy=True), scaled)
            if self.is_frozen:
                self._packed[dtype] = packed
        return packed

    def forget_packed(self) -> None:
        """Drop the packed copy, because the parameters have changed or will."""
        for packed in self._packed.values():
            packed.mark_changed()
        self._packed.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        self.forget_packed()  # the parameters move to another device
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.forget_packed()
        super()._load_from_state_dict(*arguments)

    @torch.no_grad()
    def merge_into(self, weight: Tensor) -> tuple[float, float]:
        """weight [out, in] += s B A in place, computed in float32 and rounded once.

        -> the sums of squares of what rounding loses, and of the change. Without rounding they are not needed: 0 and 0.
        """
        dtype = torch.promote_types(weight.dtype, torch.float32)
        lost = changed = 0.0
        for pair, a, b in self:
            wide_a, wide_b = a.to(dtype), b.to(dtype)
            blocks = -(-pair.height * weight.shape[1] * dtype.itemsize // MERGE_BYTES)  # of equal sizes
            for rows, part in zip(weight[pair.rows].tensor_split(blocks), wide_b.tensor_split(blocks), strict=True):
                wide = rows.to(dtype)  # the rows themselves if they have this dtype
                wide.addmm_(part, wide_a, alpha=pair.scale)
                if wide is rows:
                    continue
                changed += float((wide - rows).square_().sum())
                rows.copy_(wide)
                lost += float((wide - rows).square_().sum())
        return lost, changed


def without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a backward function: its products are in the dtypes of their inputs, also if autocast is still on."""

    def wrapped(ctx: Any, *gradients: Tensor) -> Any:
        with torch.autocast(gradients[0].device.type, enabled=False):
            return backward(ctx, *gradients)

    return wrapped


class AdaptedProduct(Protocol):
    """The product of a `Linear` without its adapter, for training."""

    adapter: Adapter | None

    def exact_product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product."""

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """The gradient of its input."""


def adapted_product(linear: AdaptedProduct, x: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + bias, plus the adapter's branch if the Linear has one, with gradients of x and the adapter.

    W is frozen: its gradient is not computed, and no dense copy of a quantized weight is kept for the backward pass.
    """
    adapter = linear.adapter
    if adapter is not None:
        adapter.forget_packed()  # an update may follow
    trained: tuple[Tensor, ...] = () if adapter is None else (adapter.a, *adapter.b)
    branch = F.dropout(x, adapter.dropout) if adapter is not None and adapter.dropout else None
    y: Tensor = _FrozenProduct.apply(x, branch, linear, bias, *trained)  # type: ignore[no-untyped-call]
    return y


class _FrozenProduct(torch.autograd.Function):
    """The product of `adapted_product`. `branch`: the branch's input, None if that is x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, branch: Tensor | None, linear: AdaptedProduct, bias: Tensor | None, *trained: Tensor
    ) -> Tensor:
        y = linear.exact_product(x, bias)
        ctx.linear, ctx.drops = linear, branch is not None
        if linear.adapter is None:
            return y
        a, *b = trained
        hidden = (x if branch is None else branch) @ a.to(x.dtype).T
        ctx.save_for_backward(x if branch is None else branch, hidden, a, *b)
        return _add_products(y, hidden, linear.adapter.pairs, b)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        dx = ctx.linear.input_gradient(gradient) if ctx.needs_input_grad[0] else None
        if ctx.linear.adapter is None:
            return dx, None, None, None
        pairs, dtype = ctx.linear.adapter.pairs, gradient.dtype
        inputs, hidden, a, *b = ctx.saved_tensors
        hidden_gradient = torch.empty_like(hidden)
        db = []
        for pair, first, each in zip(pairs, _starts(pairs), b, strict=True):
            columns = slice(first, first + pair.rank)
            part = gradient[:, pair.rows]
            torch.mul(part @ each.to(dtype), pair.scale, out=hidden_gradient[:, columns])
            db.append((part.T @ hidden[:, columns]).to(each.dtype).mul_(pair.scale))
        da = (hidden_gradient.T @ inputs).to(a.dtype)
        if ctx.drops:
            dropped = hidden_gradient @ a.to(dtype) if ctx.needs_input_grad[1] else None
            return dx, dropped, None, None, da, *db
        if dx is not None:
            dx.addmm_(hidden_gradient, a.to(dtype))
        return dx, None, None, None, da, *db


def _starts(pairs: Sequence[Pair]) -> Iterator[int]:
    """The first row of each pair's A in `Adapter.a`."""
    return accumulate((pair.rank for pair in pairs[:-1]), initial=0)


def _add_products(y: Tensor, hidden: Tensor, pairs: Sequence[Pair], b: Sequence[Tensor]) -> Tensor:
    """y [N, out] += s hidden Bᵀ in place, for each pair's columns of hidden [N, sum of ranks] -> y."""
    for pair, first, each in zip(pairs, _starts(pairs), b, strict=True):
        y[:, pair.rows].addmm_(hidden[:, first : first + pair.rank], each.to(y.dtype).T, alpha=pair.scale)
    return y
