"""RWKV-4 (Peng et al. 2023): attention as a running average of values, whose weights decay with time.

    mix_m(x)_t = m x_t + (1 - m) x_{t-1}
    x += output(sigmoid(receptance(mix x)) wkv(key(mix x), value(mix x)));  x += feed_forward(x)
    wkv_t = (sum_{s<t} e^{(t-1-s) w + k_s} v_s + e^{u + k_t} v_t) / (the same without v),  w = -e^{time_decay}

Memory of a row, per layer: the two inputs of the last token, and the two sums with a common exponent (for range).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine import kernels
from engine.cache.recurrent import PaddedRows
from engine.layers.linear import Linear, takes_fused_kernels
from engine.layers.norms import LayerNorm
from engine.layers.packed_adapter import AdaptersOf
from engine.models.config import ModelConfig, Traits
from engine.models.config_reader import Keys
from engine.models.family import Cost, Family
from engine.models.recurrence import RecurrentModel

BLOCK = 16  # tokens that are computed one after the other; the blocks of a text run in parallel
EMPTY_EXPONENT = -1e30  # exponent of an empty sum

MEMORY = ("attention_input", "feed_forward_input", "values", "weights", "exponent")  # of a layer, in the kernel's order

Sums = tuple[Tensor, Tensor, Tensor]  # sum of values a e^p and sum of weights b e^p, as a, b, p: [R, C] each


@dataclass(frozen=True)
class RwkvConfig(ModelConfig):
    """Shape of an RWKV model."""

    inner_size: int
    intermediate_size: int
    norm_eps: float

    def traits(self) -> Traits:
        return Traits(
            norms="layer; before, and after the embedding", positions="none", mixing="fading average of values",
            mlp="relu², gated by a sigmoid", state="two sums a channel, 1 token",
        )  # fmt: skip


def configure(keys: Keys) -> RwkvConfig:
    """`rescale_every` is not needed: it prevents float16 overflow, where our residual stream is float32."""
    hidden_size = keys.integer("hidden_size")
    return RwkvConfig(
        **keys.common({"bos_token_id": 0, "eos_token_id": 0}),
        max_position_embeddings=keys.integer("context_length", 1024),
        inner_size=keys.integer("attention_hidden_size", hidden_size),
        intermediate_size=keys.integer("intermediate_size", 4 * hidden_size),
        norm_eps=keys.number("layer_norm_epsilon", 1e-5),
    )


def token_shift(x: Tensor, previous: Tensor, mix: Tensor) -> Tensor:
    """Interpolate between each token and the previous one: `mix` [1, 1, C] of x [N, C], the rest of previous [N, C]."""
    return x * mix[0] + previous * (1 - mix[0])


class TimeMix(nn.Module):
    """The attention branch."""

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

    def forward(self, x: Tensor, previous: Tensor, rows: PaddedRows, sums: Sums) -> tuple[Tensor, Sums]:
        """x and the previous tokens, [N, hidden] each -> [N, hidden] and the new sums."""
        wide = torch.promote_types(x.dtype, torch.float32)
        key = rows.pad(self.key(token_shift(x, previous, self.time_mix_key)).to(wide))
        value = rows.pad(self.value(token_shift(x, previous, self.time_mix_value)).to(wide))
        receptance = torch.sigmoid(self.receptance(token_shift(x, previous, self.time_mix_receptance)))
        decay, first = -self.time_decay.to(wide).exp(), self.time_first.to(wide)
        # the many sums of each token are computed again in the backward pass
        run = (
            partial(checkpoint, averages, use_reentrant=False, preserve_rng_state=False)
            if torch.is_grad_enabled()
            else averages
        )
        average, last = run(decay, first, key, value, sums, rows)
        k, v = rows.last(key), rows.last(value)
        return self.output(receptance * average.to(x.dtype)), add(decayed(last, decay), (v, torch.ones_like(v), k))


def averages(
    decay: Tensor, first: Tensor, key: Tensor, value: Tensor, start: Sums, rows: PaddedRows
) -> tuple[Tensor, Sums]:
    """wkv of all tokens [N, C], and the sums before each row's last token: arguments as in `running_sums`."""
    past = running_sums(decay, key, value, start)
    with_current = add(past, (value, torch.ones_like(value), key + first))
    return rows.unpad(with_current[0] / with_current[1]), cast("Sums", tuple(map(rows.last, past)))


def add(x: Sums, y: Sums) -> Sums:
    """Add two sums, with the larger exponent as the common one."""
    p = torch.maximum(x[2], y[2])
    scale_x, scale_y = (x[2] - p).exp(), (y[2] - p).exp()
    return x[0] * scale_x + y[0] * scale_y, x[1] * scale_x + y[1] * scale_y, p


def decayed(x: Sums, exponent: Tensor) -> Sums:
    """Multiply a sum by e^exponent."""
    return x[0], x[1], x[2] + exponent


def running_sums(decay: Tensor, key: Tensor, value: Tensor, start: Sums) -> Sums:
    """The sums before each token: decay [C], key and value [R, T, C], start [R, C] each -> [R, T, C] each.

    All blocks are computed in parallel from empty sums; then each block's start is added, passed from block to block.
    """
    count = key.shape[1]
    if count == 1:
        return cast("Sums", tuple(part[:, None] for part in start))
    block = min(BLOCK, count)
    padding = -count % block
    if padding:
        key, value = (nn.functional.pad(x, (0, 0, 0, padding)) for x in (key, value))
    keys, values = (torch.unflatten(x, 1, (-1, block)).unbind(2) for x in (key, value))  # of [R, T / block, C]
    one, zero = torch.ones_like(keys[0]), torch.zeros_like(keys[0])
    sums: Sums = (zero, zero, torch.full_like(zero, EMPTY_EXPONENT))
    within = []  # the sums before each token, within its block
    for k, v in zip(keys, values, strict=True):
        within.append(sums)
        sums = add(decayed(sums, decay), (v, one, k))
    starts = [start]
    for previous in range(len(keys[0][0]) - 1):
        of_block = cast("Sums", tuple(part[:, previous] for part in sums))
        starts.append(add(decayed(starts[-1], block * decay), of_block))
    carried = cast("Sums", tuple(torch.stack(parts, dim=1) for parts in zip(*starts, strict=True)))
    total = [add(part, decayed(carried, index * decay)) for index, part in enumerate(within)]
    return cast("Sums", tuple(torch.stack(parts, dim=2).flatten(1, 2)[:, :count] for parts in zip(*total, strict=True)))


class ChannelMix(nn.Module):
    """The feed-forward branch: sigmoid(receptance(mix x)) value(relu(key(mix x))²)."""

    def __init__(self, config: RwkvConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.time_mix_key = nn.Parameter(torch.empty(1, 1, hidden))
        self.time_mix_receptance = nn.Parameter(torch.empty(1, 1, hidden))
        self.key = Linear(hidden, config.intermediate_size)
        self.receptance = Linear(hidden, hidden)
        self.value = Linear(config.intermediate_size, hidden)

    def forward(self, x: Tensor, previous: Tensor) -> Tensor:
        key = self.key(token_shift(x, previous, self.time_mix_key)).relu().square()
        return torch.sigmoid(self.receptance(token_shift(x, previous, self.time_mix_receptance))) * self.value(key)


class Block(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x))."""

    def __init__(self, config: RwkvConfig) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.attention = TimeMix(config)
        self.feed_forward_norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = ChannelMix(config)

    def forward(self, x: Tensor, rows: PaddedRows, memory: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        plain = x.dtype == self.attention.key.dtype  # not so for float16, whose residual stream is float32
        ops = kernels.for_input(x) if rows.longest == 1 and plain and self.fused else None
        if ops is not None:
            tensors = [memory[name].contiguous() for name in MEMORY]
            adapters = self.kernel_adapters.joined(x.dtype)
            x, *new_tensors = ops.rwkv(
                x, tensors, *self.kernel_weights(), self.attention_norm.eps, adapters.data, adapters.sizes
            )
            return x, dict(zip(MEMORY, new_tensors, strict=True))
        normed = self.attention_norm(x)
        previous, attention_input = _previous_tokens(normed, rows, memory["attention_input"])
        sums = (memory["values"], memory["weights"], memory["exponent"])
        attention, (values, weights, exponent) = self.attention(normed, previous, rows, sums)
        x = x + attention
        normed = self.feed_forward_norm(x)
        previous, feed_forward_input = _previous_tokens(normed, rows, memory["feed_forward_input"])
        new_memory = dict(zip(MEMORY, (attention_input, feed_forward_input, values, weights, exponent), strict=True))
        return x + self.feed_forward(normed, previous), new_memory

    @cached_property
    def fused(self) -> bool:
        """Whether the C++ kernel supports the formats of all weights."""
        return takes_fused_kernels(self)

    def kernel_weights(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """All parameters in the C++ kernel's order, and the scales of those that are quantized."""
        sources = self._kernel_sources()
        weights = [cast("Tensor", source.weight if isinstance(source, Linear) else source) for source in sources]
        return weights, [source.scales if isinstance(source, Linear) else None for source in sources]

    @cached_property
    def kernel_adapters(self) -> AdaptersOf:
        """The live adapters of these weights."""
        return AdaptersOf((i, source) for i, source in enumerate(self._kernel_sources()) if isinstance(source, Linear))

    def _kernel_sources(self) -> tuple[Tensor | Linear | None, ...]:
        time, feed = self.attention, self.feed_forward
        return (
            self.attention_norm.weight, self.attention_norm.bias, time.time_decay, time.time_first,
            time.time_mix_key, time.time_mix_value, time.time_mix_receptance,
            time.key, time.value, time.receptance, time.output,
            self.feed_forward_norm.weight, self.feed_forward_norm.bias, feed.time_mix_key, feed.time_mix_receptance,
            feed.key, feed.receptance, feed.value,
        )  # fmt: skip


def _previous_tokens(x: Tensor, rows: PaddedRows, first: Tensor) -> tuple[Tensor, Tensor]:
    """x [N, C] -> the previous token of each [N, C], and each row's last token [R, C].

    `first` [R, C]: the previous token of each row's first one.
    """
    padded = rows.pad(x)
    return rows.unpad(torch.cat((first[:, None].to(x.dtype), padded[:, :-1]), dim=1)), rows.last(padded)


class Rwkv(RecurrentModel):
    """The whole model."""

    config: RwkvConfig

    def __init__(self, config: RwkvConfig) -> None:
        super().__init__(config)
        self.embed_norm = LayerNorm(config.hidden_size, config.norm_eps)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = LayerNorm(config.hidden_size, 1e-5)  # fixed, whatever config.json has

    def residual(self, tokens: Tensor) -> Tensor:
        x = self.embed_norm(self.embed(tokens))
        return x.float() if x.dtype == torch.float16 else x  # the sum of all branches overflows float16

    def empty(self) -> dict[str, Tensor]:
        config, dtype, device = self.config, self.embed.dtype, self.embed.weight.device
        sums = torch.zeros(config.inner_size, dtype=torch.promote_types(dtype, torch.float32), device=device)
        shift = torch.zeros(config.hidden_size, dtype=dtype, device=device)
        exponent = torch.full_like(sums, EMPTY_EXPONENT)
        return dict(zip(MEMORY, (shift, shift, sums, sums, exponent), strict=True))

    def costs(self, context: int) -> Iterator[Cost]:  # noqa: ARG002
        blocks = [cast("Block", block) for block in self.layers]
        norms = (norm for block in blocks for norm in (block.attention_norm, block.feed_forward_norm))
        yield Cost.of_weights("time mixing", (block.attention for block in blocks))
        yield Cost.of_weights("channel mixing", (block.feed_forward for block in blocks))
        yield Cost.of_weights("norms", (self.embed_norm, self.norm, *norms))
        yield from self.common_costs()


def _initial_decay(shape: torch.Size, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """From -5 (almost no decay) to 3, as in the middle layers of the paper."""
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
