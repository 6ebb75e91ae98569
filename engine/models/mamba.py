"""Mamba (Gu & Dao 2023): no attention; each layer has a state of fixed size that every token updates.

    x, z = in_proj(norm(residual));  x = silu(conv(x));  dt, B, C = x_proj(x)
    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t;   y_t = C_t h_t + D x_t;   residual += out_proj(y silu(z))

h is [channels, N] per row, in float32, as is the residual stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine import kernels
from engine.cache.recurrent import PaddedRows
from engine.layers.linear import Linear, takes_fused_kernels
from engine.layers.norms import RMSNorm
from engine.layers.packed_adapter import AdaptersOf
from engine.models.config import ModelConfig, Traits
from engine.models.config_reader import Keys
from engine.models.family import Cost, Family
from engine.models.recurrence import RecurrentModel
from engine.models.selective_scan import selective_scan

TRAINED_LENGTH = 2048  # tokens; rarely in config.json


@dataclass(frozen=True)
class MambaConfig(ModelConfig):
    """Shape and choices of a Mamba model."""

    inner_size: int
    state_size: int
    conv_kernel: int
    time_step_rank: int
    norm_eps: float
    bias: bool
    conv_bias: bool
    residual_in_float32: bool

    def traits(self) -> Traits:
        return Traits(
            norms="RMS; before", positions="none", mixing="selective state space, after a convolution",
            mlp="in the mixer, gated silu", state=f"[{self.state_size}] a channel, {self.conv_kernel - 1} tokens",
        )  # fmt: skip


def configure(keys: Keys) -> MambaConfig:
    """`time_step_rank` may be "auto": a sixteenth of the hidden size."""
    hidden_size = keys.integer("hidden_size")
    automatic = keys.get("time_step_rank", "auto") == "auto"
    keys.choice("hidden_act", ("silu",), "silu")
    return MambaConfig(
        **keys.common({"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True}),
        max_position_embeddings=keys.integer("max_position_embeddings", TRAINED_LENGTH),
        inner_size=keys.integer("intermediate_size", int(keys.number("expand", 2) * hidden_size)),
        state_size=keys.integer("state_size", 16),
        conv_kernel=keys.integer("conv_kernel", 4, least=2),
        time_step_rank=math.ceil(hidden_size / 16) if automatic else keys.integer("time_step_rank"),
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        bias=keys.flag("use_bias", False),
        conv_bias=keys.flag("use_conv_bias", True),
        residual_in_float32=keys.flag("residual_in_fp32", True),
    )


class Convolution(nn.Module):
    """Depthwise causal convolution over K tokens."""

    def __init__(self, channels: int, kernel: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x [R, K - 1 + T, C], of which the first K - 1 are previous tokens -> [R, T, C]."""
        taps = self.weight[:, 0].unbind(-1)  # K of [C]
        count = x.shape[1] - len(taps) + 1
        out = x[:, :count] * taps[0]
        for offset, tap in enumerate(taps[1:], 1):
            out = torch.addcmul(out, x[:, offset : offset + count], tap)
        return out if self.bias is None else out + self.bias


class Mixer(nn.Module):
    """The selective state space layer."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.sizes = [config.time_step_rank, config.state_size, config.state_size]
        self.in_proj = Linear(config.hidden_size, config.inner_size, config.inner_size, bias=config.bias)
        self.conv = Convolution(config.inner_size, config.conv_kernel, config.conv_bias)
        self.x_proj = Linear(config.inner_size, sum(self.sizes), exact=True)
        self.dt_proj = Linear(config.time_step_rank, config.inner_size, bias=True, exact=True)
        self.A_log = nn.Parameter(torch.empty(config.inner_size, config.state_size))
        self.D = nn.Parameter(torch.empty(config.inner_size))
        self.out_proj = Linear(config.inner_size, config.hidden_size, bias=config.bias)

    @cached_property
    def fused(self) -> bool:
        """Whether the C++ kernel supports the formats of all weights."""
        return takes_fused_kernels(self)

    @cached_property
    def kernel_adapters(self) -> AdaptersOf:
        """The live adapters, in the C++ kernel's order."""
        return AdaptersOf(enumerate((self.in_proj, self.x_proj, self.dt_proj, self.out_proj)))

    def forward(self, x: Tensor, rows: PaddedRows, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """x [N, hidden] -> [N, hidden] and the rows' new memory."""
        ops = kernels.for_input(x) if rows.longest == 1 and self.fused else None
        if ops is not None:
            conv, ssm = memory["conv"].contiguous(), memory["ssm"].contiguous()
            in_proj, out_proj = ((proj.weight, proj.scales, proj.bias) for proj in (self.in_proj, self.out_proj))
            convolution = (self.conv.weight, self.conv.bias)
            state_space = (self.x_proj.weight, self.dt_proj.weight, self.dt_proj.bias, self.A_log, self.D)
            adapters = self.kernel_adapters.joined(x.dtype)
            out, conv, ssm = ops.mamba(
                x, conv, ssm, *in_proj, *convolution, *state_space, *out_proj, adapters.data, adapters.sizes
            )
            return out, {"conv": conv, "ssm": ssm}
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        with_past = torch.cat((memory["conv"].to(x.dtype), rows.pad(x)), dim=1)  # [R, K - 1 + T, C]
        past = memory["conv"].shape[1]
        x = F.silu(rows.unpad(self.conv(with_past)))
        dt, b, c = torch.split(self.x_proj(x), self.sizes, dim=-1)
        wide = torch.promote_types(x.dtype, torch.float32)
        bias = cast("Tensor", self.dt_proj.bias)
        dt = F.softplus(self.dt_proj.without_bias(dt).to(wide) + bias.to(wide))
        a = -self.A_log.to(wide).exp()
        dt, b, c, inner = (
            rows.pad(part.to(wide)) for part in (dt, b, c, x)
        )  # padding has dt = 0, which leaves h unchanged
        y, last = selective_scan(a, dt, b, c, inner, memory["ssm"].to(wide))
        y = (rows.unpad(y) + self.D.to(wide) * x) * F.silu(gate)
        if rows.even:
            conv = with_past[:, with_past.shape[1] - past :]
        else:
            indices = rows.ends[:, None] + 1 + torch.arange(past, device=x.device)
            conv = with_past.gather(1, indices[..., None].expand(-1, -1, with_past.shape[-1]))
        return self.out_proj(y.to(self.out_proj.dtype)), {"conv": conv, "ssm": last}


class Block(nn.Module):
    """residual + mixer(norm(residual))."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mixer = Mixer(config)

    def forward(self, x: Tensor, rows: PaddedRows, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        mixed, new_memory = self.mixer(self.norm(x.to(self.norm.weight.dtype)), rows, memory)
        return x + mixed, new_memory


class Mamba(RecurrentModel):
    """The whole model."""

    config: MambaConfig

    def __init__(self, config: MambaConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)

    def residual(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return x.to(torch.promote_types(x.dtype, torch.float32)) if self.config.residual_in_float32 else x

    def empty(self) -> dict[str, Tensor]:
        config, dtype, device = self.config, self.embed.dtype, self.embed.weight.device
        wide = torch.promote_types(dtype, torch.float32)
        return {
            "conv": torch.zeros(config.conv_kernel - 1, config.inner_size, dtype=dtype, device=device),
            "ssm": torch.zeros(config.inner_size, config.state_size, dtype=wide, device=device),
        }

    def costs(self, context: int) -> Iterator[Cost]:  # noqa: ARG002
        blocks = [cast("Block", block) for block in self.layers]
        yield Cost.of_weights("mixers", (block.mixer for block in blocks))
        yield Cost.of_weights("norms", (self.norm, *(block.norm for block in blocks)))
        yield from self.common_costs()


def _initial_decay(shape: torch.Size, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """A = -1 … -N in every channel (S4D-real)."""
    return torch.arange(1, shape[1] + 1).float().log().expand(shape).clone()


def _initial_time_step(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """softplus of it is log-uniform between 0.001 and 0.1."""
    dt = torch.empty(shape).uniform_(math.log(0.001), math.log(0.1), generator=generator).exp()
    return dt + (-(-dt).expm1()).log()


NAMES = {
    "embed": ("backbone.embeddings",),
    "layers.*.norm": ("backbone.layers.*.norm",),
    "layers.*.mixer": ("backbone.layers.*.mixer",),
    "layers.*.mixer.conv": ("backbone.layers.*.mixer.conv1d",),
    **{
        f"layers.*.mixer.{name}": (f"backbone.layers.*.mixer.{name}",)
        for name in ("in_proj", "x_proj", "dt_proj", "out_proj")
    },
    "norm": ("backbone.norm_f",),
    "head": ("lm_head",),
}

FAMILY = Family(
    "mamba",
    configure,
    Mamba,
    NAMES,
    initial={"A_log": _initial_decay, "dt_proj.bias": _initial_time_step},
    aliases=((r"^backbone\.embedding\.", "backbone.embeddings."),),
    unadapted=("dt_proj", "out_proj"),  # transformers reads their weights without their modules
    checkpoints=("state-spaces/mamba-130m-hf", "state-spaces/mamba-1.4b-hf", "state-spaces/mamba-2.8b-hf"),
)
