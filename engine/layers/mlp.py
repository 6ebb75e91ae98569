"""The feed-forward branch of a block: gated and plain MLPs, and their activations."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from engine import kernels
from engine.kernels import gpu
from engine.layers.linear import Linear

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
ACTIVATIONS = {  # names in config.json -> functions
    **{name: name for name in ("silu", "gelu", "relu")},
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "gelu_tanh"),
    "swish": "silu",
}


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020), with gate and up stacked into one product."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.gate_up = Linear(hidden_size, intermediate_size, intermediate_size, bias=bias)
        self.down = Linear(intermediate_size, hidden_size, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        ops = gpu.for_rows(x)
        if ops is not None and self.gate_up.adapter is None and self.gate_up.is_dense_with_few(x):
            return self.down(ops.dense_gated(x, self.gate_up.weight, self.gate_up.bias, self.activation))
        gate_up = self.gate_up(x)
        ops = ops or kernels.for_rows(gate_up)
        if ops is not None:
            return self.down(ops.gated_activation(gate_up, self.activation))
        gate, up = gate_up.chunk(2, dim=-1)
        return self.down(FUNCTIONS[self.activation](gate) * up)


class MLP(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.up = Linear(hidden_size, intermediate_size, bias=bias)
        self.down = Linear(intermediate_size, hidden_size, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(FUNCTIONS[self.activation](self.up(x)))
