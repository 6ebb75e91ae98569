"""The gated activation of an MLP on an NVIDIA GPU, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu.launch import launch

BLOCK = 1024  # numbers of a program


def gated_activation(gate_up: Tensor, activation: str) -> Tensor:
    """activation(gate) * up: [N, 2 I] in rows of any stride -> [N, I].

    `activation`: silu, gelu, gelu_tanh or relu. It is rounded to the dtype before the product, as in PyTorch.
    """
    count, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(count, size, dtype=gate_up.dtype, device=gate_up.device)
    if count:
        grid = (count, -(-size // BLOCK))
        launch(_gated_activation, grid, gate_up, out, gate_up.stride(0), size, ACTIVATION=activation, BLOCK=BLOCK)
    return out


@triton.jit  # type: ignore[untyped-decorator]
def activate(x, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """The activation of float32 numbers, by PyTorch's formulas."""
    if ACTIVATION == "silu":
        result = x / (1 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        result = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        power = tl.exp(-2 * tl.abs(inner))  # at most 1, so that nothing overflows
        tanh = (1 - power) / (1 + power)
        result = 0.5 * x * (1 + tl.where(inner < 0, -tanh, tanh))
    else:
        tl.static_assert(ACTIVATION == "relu")
        result = tl.where(x < 0, 0.0, x)  # keeps NaN
    return result


@triton.jit  # type: ignore[untyped-decorator]
def _gated_activation(gate_up, out, stride, size, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < size
    gate = tl.load(gate_up + row * stride + column, mask=mask, other=0).to(tl.float32)
    up = tl.load(gate_up + row * stride + size + column, mask=mask, other=0).to(tl.float32)
    active = activate(gate, ACTIVATION).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * size + column, (active * up).to(out.dtype.element_ty), mask=mask)
