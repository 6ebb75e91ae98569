"""RWKV-4 (Peng et al. 2023): attention as a running average, whose weights fade with time.

    mix_m(x)_t = m x_t + (1 - m) x_{t-1}
    x += output(sigmoid(receptance(mix x)) wkv(key(mix x), value(mix x)));  x += feed_forward(x)
    wkv_t = (sum_{s<t} e^{(t-1-s) w + k_s} v_s + e^{u + k_t} v_t) / (the same without v),  w = -e^{time_decay}

A row remembers, for each layer, the last token's two inputs and the two sums, with their largest exponent apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from engine import kernels
from engine.cache.recurrent import Padded
from engine.layers.linear import Linear, fused
from engine.layers.norms import LayerNorm
from engine.models.config import ModelConfig, Traits
from engine.models.config_reader import Keys
from engine.models.family import Cost, Family
from engine.models.recurrence import RecurrentModel

BLOCK = 16  # tokens that are walked through; the blocks of a text go side by side
NOTHING = -1e30  # the exponent of a sum to which nothing has been added

REMEMBERED = ("attended", "fed", "values", "weights", "exponent")  # of a layer, as the kernel takes it

Sums = tuple[Tensor, Tensor, Tensor]  # a e^p of the values and b e^p of the weights, as a, b, p: [R, C] each


@dataclass(frozen=True)
class RwkvConfig(ModelConfig):
    """The shape of an RWKV."""

    inner_size: int
    intermediate_size: int
    norm_eps: float

    def traits(self) -> Traits:
        return Traits(
            norms="layer; before, and after the embedding", positions="none", mixing="fading average of values",
            mlp="relu², gated by a sigmoid", state="two sums a channel, 1 token",
        )  # fmt: skip


def configure(keys: Keys) -> RwkvConfig:
    """`rescale_every` keeps float16 from overflowing; here the residual stream is float32 then."""
    hidden_size = keys.integer("hidden_size")
    return RwkvConfig(
        **keys.common({"bos_token_id": 0, "eos_token_id": 0}),
        max_position_embeddings=keys.integer("context_length", 1024),
        inner_size=keys.integer("attention_hidden_size", hidden_size),
        intermediate_size=keys.integer("intermediate_size", 4 * hidden_size),
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
    )


def mixed(x: Tensor, before: Tensor, share: Tensor) -> Tensor:
    """A token and the one before it, `share` [1, 1, C] of the first."""
    return x * share[0] + before * (1 - share[0])


class TimeMix(nn.Module):
    """What stands for attention."""

    def __init__(self, config: RwkvConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.inner_size
        self.time_decay = nn.Parameter(torch.empty(inner))
        self.time_first = nn.Parameter(torch.empty(inner))
        self.time_mix_key = nn.Parameter(torch.empty(1, 1, hidden))
        self.time_mix_value = nn.Parameter(torch.empty(1, 1, hidden))
        self.time_mix_receptance = nn.Parameter(torch.empty(1, 1, hidden))
        self.key, self.value, self.receptance = (Linear(hidden, inner) for _ in range(3))
        self.output = Linear(inner, hidden)

    def forward(self, x: Tensor, before: Tensor, rows: Padded, sums: Sums) -> tuple[Tensor, Sums]:
        """x and the tokens before, [N, hidden] -> [N, hidden], and the sums after it."""
        wide = torch.promote_types(x.dtype, torch.float32)
        key = rows.pad(self.key(mixed(x, before, self.time_mix_key)).to(wide))
        value = rows.pad(self.value(mixed(x, before, self.time_mix_value)).to(wide))
        receptance = torch.sigmoid(self.receptance(mixed(x, before, self.time_mix_receptance)))
        decay, first = -self.time_decay.to(wide).exp(), self.time_first.to(wide)
        passed = running_sums(decay, key, value, sums)
        shown = added(passed, (value, torch.ones_like(value), key + first))
        average = rows.unpad(shown[0] / shown[1]).to(x.dtype)
        at_end = cast("Sums", tuple(map(rows.last, passed)))
        k, v = rows.last(key), rows.last(value)
        return self.output(receptance * average), added(faded(at_end, decay), (v, torch.ones_like(v), k))


def added(x: Sums, y: Sums) -> Sums:
    """Two sums as one."""
    p = torch.maximum(x[2], y[2])
    ours, theirs = (x[2] - p).exp(), (y[2] - p).exp()
    return x[0] * ours + y[0] * theirs, x[1] * ours + y[1] * theirs, p


def faded(x: Sums, by: Tensor) -> Sums:
    """A sum after some time: times e^by."""
    return x[0], x[1], x[2] + by


def running_sums(decay: Tensor, key: Tensor, value: Tensor, start: Sums) -> Sums:
    """The sums before each token: decay [C], key and value [R, T, C], start [R, C] each -> [R, T, C] each.

    In blocks side by side, each as if nothing had been before it; then from block to block.
    """
    count = key.shape[1]
    if count == 1:
        return cast("Sums", tuple(part[:, None] for part in start))
    block = min(BLOCK, count)
    filled = -count % block
    if filled:
        key, value = (nn.functional.pad(x, (0, 0, 0, filled)) for x in (key, value))
    keys, values = (torch.unflatten(x, 1, (-1, block)).unbind(2) for x in (key, value))  # of [R, T / block, C]
    one, none = torch.ones_like(keys[0]), torch.zeros_like(keys[0])
    here: Sums = (none, none, torch.full_like(none, NOTHING))
    within = []  # before each token of every block
    for k, v in zip(keys, values, strict=True):
        within.append(here)
        here = added(faded(here, decay), (v, one, k))
    starts = [start]
    for before in range(len(keys[0][0]) - 1):
        left = cast("Sums", tuple(part[:, before] for part in here))
        starts.append(added(faded(starts[-1], block * decay), left))
    carried = cast("Sums", tuple(torch.stack(parts, dim=1) for parts in zip(*starts, strict=True)))
    both = [added(own, faded(carried, place * decay)) for place, own in enumerate(within)]
    return cast("Sums", tuple(torch.stack(parts, dim=2).flatten(1, 2)[:, :count] for parts in zip(*both, strict=True)))


class ChannelMix(nn.Module):
    """sigmoid(receptance(mix x)) value(relu(key(mix x))²)."""

    def __init__(self, config: RwkvConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.time_mix_key = nn.Parameter(torch.empty(1, 1, hidden))
        self.time_mix_receptance = nn.Parameter(torch.empty(1, 1, hidden))
        self.key = Linear(hidden, config.intermediate_size)
        self.receptance = Linear(hidden, hidden)
        self.value = Linear(config.intermediate_size, hidden)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        key = self.key(mixed(x, before, self.time_mix_key)).relu().square()
        return torch.sigmoid(self.receptance(mixed(x, before, self.time_mix_receptance))) * self.value(key)


class Block(nn.Module):
    """Two branches, each with a norm before it."""

    def __init__(self, config: RwkvConfig) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.attention = TimeMix(config)
        self.feed_forward_norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = ChannelMix(config)

    def forward(self, x: Tensor, rows: Padded, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        plain = x.dtype == self.attention.key.dtype  # not float16's wider stream
        ops = kernels.few(x) if rows.longest == 1 and plain and self.fused else None
        if ops is not None:
            remembered = [memory[name].contiguous() for name in REMEMBERED]
            x, *after = ops.rwkv(x, remembered, *self.weights(), self.attention_norm.eps)
            return x, dict(zip(REMEMBERED, after, strict=True))
        read, before, attended = _shifted(self.attention_norm(x), rows, memory["attended"])
        sums = (memory["values"], memory["weights"], memory["exponent"])
        attention, (values, weights, exponent) = self.attention(read, before, rows, sums)
        x = x + attention
        read, before, fed = _shifted(self.feed_forward_norm(x), rows, memory["fed"])
        left = {"attended": attended, "fed": fed, "values": values, "weights": weights, "exponent": exponent}
        return x + self.feed_forward(read, before), left

    @cached_property
    def fused(self) -> bool:
        """Whether the kernel takes all its weights."""
        return fused(self)

    def weights(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """All that it holds, as the kernel takes it, and the scales of what is in a format."""
        time, feed = self.attention, self.feed_forward
        held: tuple[Tensor | Linear | None, ...] = (
            self.attention_norm.weight, self.attention_norm.bias, time.time_decay, time.time_first,
            time.time_mix_key, time.time_mix_value, time.time_mix_receptance,
            time.key, time.value, time.receptance, time.output,
            self.feed_forward_norm.weight, self.feed_forward_norm.bias, feed.time_mix_key, feed.time_mix_receptance,
            feed.key, feed.receptance, feed.value,
        )  # fmt: skip
        weights = [cast("Tensor", one.weight if isinstance(one, Linear) else one) for one in held]
        return weights, [one.scales if isinstance(one, Linear) else None for one in held]


def _shifted(x: Tensor, rows: Padded, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [N, C], the tokens before each [N, C], and the rows' last [R, C]; `before` [R, C] is their first one's."""
    padded = rows.pad(x)
    return x, rows.unpad(torch.cat((before[:, None].to(x.dtype), padded[:, :-1]), dim=1)), rows.last(padded)


class Rwkv(RecurrentModel):
    """The whole model."""

    config: RwkvConfig

    def __init__(self, config: RwkvConfig) -> None:
        super().__init__(config)
        self.embed_norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = LayerNorm(config.hidden_size, 1e-5)  # whatever config.json says

    def residual(self, tokens: Tensor) -> Tensor:
        x = self.embed_norm(self.embed(tokens))
        return x.float() if x.dtype == torch.float16 else x  # the sum of all branches outgrows it

    def empty(self) -> dict[str, Tensor]:
        config, dtype, device = self.config, self.embed.dtype, self.embed.weight.device
        sums = torch.zeros(config.inner_size, dtype=torch.promote_types(dtype, torch.float32), device=device)
        shift = torch.zeros(config.hidden_size, dtype=dtype, device=device)
        exponent = torch.full_like(sums, NOTHING)
        return {"attended": shift, "fed": shift, "values": sums, "weights": sums, "exponent": exponent}

    def costs(self, context: int) -> Iterator[Cost]:  # noqa: ARG002
        blocks = [cast("Block", block) for block in self.layers]
        norms = (norm for block in blocks for norm in (block.attention_norm, block.feed_forward_norm))
        yield Cost.of_weights("time mixing", (block.attention for block in blocks))
        yield Cost.of_weights("channel mixing", (block.feed_forward for block in blocks))
        yield Cost.of_weights("norms", (self.embed_norm, self.norm, *norms))
        yield from self.ends()


def _initial_decay(shape: torch.Size, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """From -5 (hardly fading) to 3, as in the middle layers of the paper's."""
    return -5 + 8 * torch.linspace(0, 1, shape[0]) ** 1.35


def _initial_first(shape: torch.Size, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return torch.full(shape, 0.3).log() + 0.5 * ((torch.arange(shape[0]) + 1) % 3 - 1)


def _initial_mix(shape: torch.Size, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return (torch.arange(shape[-1]) / shape[-1]).sqrt().view(shape)


BLOCKS = "rwkv.blocks.*"
NAMES = {
    "embed": ("rwkv.embeddings",),
    "embed_norm": ("rwkv.blocks.0.pre_ln",),
    "layers.*.attention_norm": (f"{BLOCKS}.ln1",),
    "layers.*.attention": (f"{BLOCKS}.attention",),
    **{
        f"layers.*.attention.{name}": (f"{BLOCKS}.attention.{name}",)
        for name in ("key", "value", "receptance", "output")
    },
    "layers.*.feed_forward_norm": (f"{BLOCKS}.ln2",),
    "layers.*.feed_forward": (f"{BLOCKS}.feed_forward",),
    **{f"layers.*.feed_forward.{name}": (f"{BLOCKS}.feed_forward.{name}",) for name in ("key", "receptance", "value")},
    "norm": ("rwkv.ln_out",),
    "head": ("head",),
}

FAMILY = Family(
    "rwkv",
    configure,
    Rwkv,
    NAMES,
    initial={
        "time_decay": _initial_decay,
        "time_first": _initial_first,
        **dict.fromkeys(("mix_key", "mix_value", "mix_receptance"), _initial_mix),
    },
    checkpoints=("RWKV/rwkv-4-169m-pile", "RWKV/rwkv-4-1b5-pile", "RWKV/rwkv-4-3b-pile"),
)
