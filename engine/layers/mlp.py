"""The feed-forward half of a block: gated and plain MLPs."""

from __future__ import annotations

from torch import Tensor, nn

from engine.layers.linear import Linear
from engine.layers.norms import ACTIVATIONS, FUNCTIONS


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020), with gate and up as one product."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.gate_up = Linear(hidden_size, intermediate_size, intermediate_size, bias=bias)
        self.down = Linear(intermediate_size, hidden_size, bias=bias)
        self.activation = FUNCTIONS[ACTIVATIONS[activation]]

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)


class MLP(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.up = Linear(hidden_size, intermediate_size, bias=bias)
        self.down = Linear(intermediate_size, hidden_size, bias=bias)
        self.activation = FUNCTIONS[ACTIVATIONS[activation]]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))
