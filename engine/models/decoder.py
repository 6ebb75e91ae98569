"""The trunk: one decoder-only transformer, with the choices in which its families differ.

    tokens -> embedding -> n x ( x + attention(x);  x + mlp(x) ) -> norm -> head -> logits

A family's file (llama.py, qwen2.py, …) turns its config.json into a `DecoderConfig` and says what its
tensors are called in a checkpoint. There is no other place in which families differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from engine.attention import Attention, Tail
from engine.config import Keys, ModelConfig, RopeConfig
from engine.errors import BareloopError
from engine.layers import ACTIVATIONS, Embedding, GatedMLP, RMSNorm
from engine.linear import Linear
from engine.models.family import Cost, Model
from engine.rope import Rotary
from engine.state import State, Step, View

MAX_HEAD_DIM = 2**14  # far above any checkpoint's; tables of this width are made before weights are looked at


@dataclass(frozen=True)
class DecoderConfig(ModelConfig):
    """The shape of a decoder and its orthogonal choices."""

    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeConfig
    activation: str
    windows: tuple[int | None, ...]  # per layer: how far back it sees; None: to the beginning
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str | None = None  # "head": each head of q and k on its own; "width": all heads as one vector
    norm_before: bool = True  # each branch reads norm(x)
    norm_after: bool = False  # each branch's result is normalized before it is added
    float32_details: bool = False  # norm weights and rotation applied in float32, rounded after (OLMo-2)


def decoder_config(keys: Keys, defaults: Mapping[str, Any], **choices: Any) -> DecoderConfig:
    """What all families read from config.json, with a family's defaults for absent keys and its own choices."""
    hidden_size, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    absent = "num_key_value_heads" not in keys.raw  # null means one for each head, whatever the family's default
    kv_heads = keys.integer("num_key_value_heads", defaults.get("num_key_value_heads", heads) if absent else heads)
    if heads % kv_heads:
        raise BareloopError(f"config.json: {heads} attention heads are no multiple of {kv_heads} key-value heads")
    head_dim = keys.integer("head_dim", defaults.get("head_dim", max(hidden_size // heads, 1)), most=MAX_HEAD_DIM)
    if head_dim % 2:
        raise BareloopError(f"config.json: head_dim = {head_dim} is odd, and rotary positions need pairs")
    max_position_embeddings = keys.integer("max_position_embeddings", defaults["max_position_embeddings"])
    common = keys.common(defaults.get("bos_token_id"), defaults.get("eos_token_id"))
    return DecoderConfig(
        **common,
        max_position_embeddings=max_position_embeddings,
        intermediate_size=keys.integer("intermediate_size"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=keys.number("rms_norm_eps", defaults.get("rms_norm_eps", 1e-6)),
        rope=keys.rope(max_position_embeddings),
        activation=keys.choice("hidden_act", tuple(ACTIVATIONS), "silu"),
        **({"windows": (None,) * common["num_layers"]} | choices),
    )


class Block(nn.Module):
    """x + attention, then x + MLP, each with a norm before or after it."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.attention = Attention(
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            qkv_bias=config.qkv_bias,
            out_bias=config.out_bias,
            qk_norm=config.qk_norm,
            norm_eps=config.norm_eps,
            norm_weight_in_float32=config.float32_details,
            window=config.windows[layer],
        )
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.activation, config.mlp_bias)
        self.attention_norm_before = _norm(config, config.norm_before)
        self.attention_norm_after = _norm(config, config.norm_after)
        self.mlp_norm_before = _norm(config, config.norm_before)
        self.mlp_norm_after = _norm(config, config.norm_after)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], step: Step, view: View | None, tail: Tail) -> Tensor:
        attended = self.attention(self.attention_norm_before(x), rotary, step, view, self.layer, tail)
        if tail is not None:
            x = x[tail[1]]
        x = x + self.attention_norm_after(attended)
        return x + self.mlp_norm_after(self.mlp(self.mlp_norm_before(x)))


class Decoder(Model):
    """A decoder-only transformer. Pure: what it remembers is in the state that the caller passes."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config: DecoderConfig = config
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = _norm(config)
        self.head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.head.weight = self.embed.weight
        with torch.device("cpu"):  # real numbers even where the modules are built on the meta device
            self.rotary = Rotary(config.rope, config.head_dim)

    def forward(self, step: Step, state: State | None = None, last: Sequence[int] | None = None) -> Tensor:
        view = state.view(step) if state is not None else None
        tail = view.tail(last) if view is not None and last is not None else None
        x = self.embed(step.tokens)
        rotary_dtype = torch.float32 if self.config.float32_details and x.dtype != torch.float64 else x.dtype
        rotary = self.rotary(step.positions, step.lengths, rotary_dtype)
        *layers, final = self.layers
        for block in layers:
            x = block(x, rotary, step, view, None)
        x = final(x, rotary, step, view, tail)
        if view is not None:
            view.commit()
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def new_state(self) -> State:
        config, weight = self.config, self.embed.weight
        return State(config.num_layers, config.num_kv_heads, config.head_dim, weight.dtype, weight.device)

    def costs(self, context: int) -> Iterator[Cost]:
        config = self.config
        row = config.hidden_size * self.embed.weight.itemsize
        blocks = cast("list[Block]", list(self.layers))
        yield Cost("embedding", self.embed.weight.numel(), row, 0)
        yield Cost.of_weights("attention projections", (block.attention for block in blocks))
        cache = 2 * config.num_kv_heads * config.head_dim * self.embed.weight.itemsize
        seen = [context + 1 if window is None else min(context + 1, window) for window in config.windows]
        flops = 4 * config.num_heads * config.head_dim * sum(seen)
        yield Cost(f"keys and values at {context:,} tokens", 0, cache * sum(seen), flops)
        yield Cost.of_weights("MLP", (block.mlp for block in blocks))
        yield Cost.of_weights(
            "norms",
            (self.norm, *(norm for block in blocks for name, norm in block.named_children() if "norm" in name)),
        )
        head = Cost.of_weights("head", [self.head])
        yield Cost("head (shares the embedding)", 0, head.nbytes, head.flops) if config.tie_word_embeddings else head


def _norm(config: DecoderConfig, wanted: bool = True) -> nn.Module:
    return RMSNorm(config.hidden_size, config.norm_eps, config.float32_details) if wanted else nn.Identity()
