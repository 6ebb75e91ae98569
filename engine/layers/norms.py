"""RMSNorm and LayerNorm, in the variants that families use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine import kernels
from engine.kernels import gpu


class RMSNorm(nn.Module):
    """x / rms(x) * w (Zhang & Sennrich 2019), with the quotient in float32.

    Families differ in when they round to the model's dtype: Llama before multiplying by the weight, OLMo-2 and Gemma
    after (`weight_in_float32`); and in whether the weight is stored minus one (`plus_one`, Gemma).
    """

    def __init__(self, size: int, eps: float, weight_in_float32: bool = False, plus_one: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps
        self.weight_in_float32 = weight_in_float32
        self.plus_one = plus_one
        self.kind = "RMS, 1 + w" if plus_one else "RMS, float32" if weight_in_float32 else "RMS"
        self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        ops = kernels.for_rows(x)
        if ops is not None and x.dtype == self.weight.dtype:
            return ops.rms_norm(x, self.weight, self.eps, self.kind)
        if (ops := gpu.for_rows(x)) is not None:
            return _norm_on_gpu(ops, x, self)
        wide = _at_least_float32(x)
        unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if not self.weight_in_float32:
            return self.weight * unit.to(x.dtype)
        weight = 1.0 + _at_least_float32(self.weight) if self.plus_one else self.weight
        return (weight * unit).to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean(x)) / std(x) * w + b (Ba et al. 2016). OLMo's has no weights."""

    def __init__(self, size: int, eps: float, weights: bool = True) -> None:
        super().__init__()
        self.size, self.eps = (size,), eps
        self.kind = "layer" if weights else "layer, no weights"
        self.weight = nn.Parameter(torch.empty(size)) if weights else None
        self.bias = nn.Parameter(torch.empty(size)) if weights else None

    def forward(self, x: Tensor) -> Tensor:
        if (ops := gpu.for_rows(x)) is not None:
            return _norm_on_gpu(ops, x, self)
        if self.weight is None or self.bias is None or self.weight.dtype == x.dtype:
            return F.layer_norm(x, self.size, self.weight, self.bias, self.eps)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)  # the residual stream is wider
        return F.layer_norm(x, self.size, weight, bias, self.eps).to(self.weight.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    """Convert to float32, unless x is float64."""
    return x.float() if x.dtype != torch.float64 else x


def add_and_norm(x: Tensor, delta: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """x + delta [N, D], the new residual stream, and its norm. Without a delta it is x."""
    ops = gpu.for_rows(x) if isinstance(norm, RMSNorm | LayerNorm) else None
    if ops is not None:
        return ops.add_norm(x, delta, norm.weight, norm.bias, norm.eps, norm.kind)
    if delta is None:
        return x, norm(x)
    if isinstance(norm, RMSNorm | LayerNorm) and x.dtype == delta.dtype == _dtype_of(norm, x):
        ops = kernels.for_rows(x)
        if ops is not None and x.is_contiguous() and delta.is_contiguous():
            return ops.add_norm(x, delta, norm.weight, norm.bias, norm.eps, norm.kind)
    x = x + delta
    return x, norm(x)


def _dtype_of(norm: RMSNorm | LayerNorm, x: Tensor) -> torch.dtype:
    """Dtype of the weights; that of x if there are none."""
    return x.dtype if norm.weight is None else norm.weight.dtype


def _norm_on_gpu(ops: Any, x: Tensor, norm: RMSNorm | LayerNorm) -> Tensor:
    """The norm of tokens [N, D], or of the heads of tokens [N, H, D]."""
    if x.dim() == 3:
        return ops.head_norm(x, norm.weight, norm.eps, norm.kind, norm.bias)
    return ops.add_norm(x, None, norm.weight, norm.bias, norm.eps, norm.kind)[1]


NORMS: dict[str, Callable[[int, float], nn.Module]] = {
    "RMS": RMSNorm,
    "RMS, float32": lambda size, eps: RMSNorm(size, eps, weight_in_float32=True),
    "RMS, 1 + w": lambda size, eps: RMSNorm(size, eps, weight_in_float32=True, plus_one=True),
    "layer": LayerNorm,
    "layer, no weights": lambda size, eps: LayerNorm(size, eps, weights=False),
}
