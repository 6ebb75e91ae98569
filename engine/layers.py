"""The small parts of a block: norms, embeddings, the gated MLP."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.linear import Linear


class Embedding(nn.Module):
    """Token ids [N] -> rows of the table [N, D]."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)


class RMSNorm(nn.Module):
    """x / rms(x) * w (Zhang & Sennrich 2019), the quotient always in float32.

    Families differ in when they round to the model's dtype: Llama before the weight is applied, OLMo-2
    after (`weight_in_float32`).
    """

    def __init__(self, size: int, eps: float, weight_in_float32: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps
        self.weight_in_float32 = weight_in_float32

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype != torch.float64 else x
        unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.weight_in_float32:
            return (self.weight * unit).to(x.dtype)
        return self.weight * unit.to(x.dtype)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020), with gate and up as one product."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.gate_up = Linear(hidden_size, intermediate_size, intermediate_size, bias=bias)
        self.down = Linear(intermediate_size, hidden_size, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)
