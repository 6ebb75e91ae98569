"""The trunk: one decoder-only transformer, with the choices in which families differ.

    tokens -> embedding -> n x ( x + attention(x);  x + mlp(x) ) -> norm -> head -> logits

A family's file (llama.py, qwen2.py, …) turns its config.json into a `DecoderConfig` and names its tensors in a
checkpoint. Families differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from engine import kernels
from engine.cache.blocks import Budget
from engine.cache.kv_state import KVState, StateView
from engine.cache.paged import PagedState
from engine.cache.state import State, Step
from engine.kernels import gpu
from engine.layers.attention import Attention, LayerView, Tail
from engine.layers.attention_config import AttentionConfig
from engine.layers.linear import Embedding, Linear
from engine.layers.mlp import ACTIVATIONS, MLP, GatedMLP
from engine.layers.norms import NORMS, add_and_norm
from engine.layers.packed_adapter import AdaptersOf
from engine.layers.rope import RopeConfig, Rotary
from engine.models.config import ModelConfig, Traits
from engine.models.config_reader import Keys
from engine.models.family import Cost, Model
from engine.runtime.errors import BareloopError

MAX_HEAD_DIM = 2**14  # far above any checkpoint's; rotary tables of this width are built before the weights are checked


@dataclass(frozen=True)
class DecoderConfig(ModelConfig):
    """The shape of a decoder and its orthogonal choices."""

    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    activation: str
    scales: tuple[float, ...]  # of the attention scores, per layer
    windows: tuple[int | None, ...]  # attention window in tokens per layer; None for full attention
    rope: RopeConfig | None  # None: learned positions, added to the embedding
    local_rope: RopeConfig | None = None  # of layers with a window, if it differs
    rotary_size: int | None = None  # rotated coordinates of a head; None: all
    rotary_in_float32: bool = False  # rotate in float32, then round
    norm: str = "RMS"  # a key of layers.norms.NORMS
    norm_before: bool = True  # a norm on the input of each branch
    norm_after: bool = False  # a norm on the output of each branch
    parallel: bool = False  # both branches have the same input, and are added together
    one_norm: bool = False  # the MLP gets the normalized input of the attention
    qk_norm: str | None = None  # "head": each head of q and k by itself; "width": all heads as one vector
    clip_qkv: float | None = None  # q, k and v are clamped to ± this
    qkv_bias: bool = False
    out_bias: bool = False
    gated: bool = True  # down(act(gate(x)) * up(x)), or down(act(up(x)))
    mlp_bias: bool = False
    head_bias: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0

    def attention(self, layer: int) -> AttentionConfig:
        """The attention config of one layer."""
        return AttentionConfig(
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            qkv_bias=self.qkv_bias,
            out_bias=self.out_bias,
            qk_norm=None if self.qk_norm is None else lambda size: NORMS[self.norm](size, self.norm_eps),
            qk_norm_heads=self.qk_norm == "head",
            clip=self.clip_qkv,
            window=self.windows[layer],
            scale=self.scales[layer],
            softcap=self.attention_softcap,
        )

    def ropes(self, layer: int) -> RopeConfig | None:
        """The rotary embedding of one layer."""
        return self.rope if self.local_rope is None or self.windows[layer] is None else self.local_rope

    def traits(self) -> Traits:
        position = " and ".join(
            word for word, present in (("before", self.norm_before), ("after", self.norm_after)) if present
        )
        branches = ", one for both branches" if self.one_norm else ", parallel branches" if self.parallel else ""
        windowed = sum(window is not None for window in self.windows)
        positions = "learned"
        if self.rope is not None:
            part = f", {self.rotary_size / self.head_dim:.0%} of a head" if self.rotary_size else ""
            positions = f"rotary{part}{', in float32' if self.rotary_in_float32 else ''}"
            positions += ", other frequencies with a window" if self.local_rope is not None else ""
        scaled = self.scales[0] == self.head_dim**-0.5
        mixing = {
            f"q and k normed by {self.qk_norm}": self.qk_norm,
            "q, k, v clipped": self.clip_qkv,
            "biases": self.qkv_bias and self.out_bias,
            "biases on q, k, v": self.qkv_bias and not self.out_bias,
            "bias on its output": self.out_bias and not self.qkv_bias,
            "scores not scaled by the head size": not scaled,
            "soft-capped scores": self.attention_softcap,
            f"{windowed} of {len(self.windows)} layers with a window": windowed,
        }
        mlp = f"{'gated ' if self.gated else ''}{self.activation}{', biases' if self.mlp_bias else ''}"
        return Traits(
            norms=f"{self.norm}; {position}{branches}",
            positions=positions,
            mixing=", ".join(["attention", *(words for words, present in mixing.items() if present)]),
            mlp=mlp,
            state="keys, values",
        )


def decoder_config(keys: Keys, defaults: Mapping[str, Any], **choices: Any) -> DecoderConfig:
    """Read the keys that most families share, with the family's defaults for absent keys, and its `choices`."""
    hidden_size, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    absent = not keys.has("num_key_value_heads")  # null means one per query head, whatever the family's default
    kv_heads = keys.integer("num_key_value_heads", defaults.get("num_key_value_heads", heads) if absent else heads)
    if heads % kv_heads:
        raise BareloopError(f"config.json: {heads} attention heads are not a multiple of {kv_heads} key-value heads")
    head_dim = keys.integer("head_dim", defaults.get("head_dim", max(hidden_size // heads, 1)), most=MAX_HEAD_DIM)
    max_position_embeddings = keys.integer("max_position_embeddings", defaults["max_position_embeddings"])
    layers = keys.layers()
    fields = {
        "max_position_embeddings": max_position_embeddings,
        "intermediate_size": keys.integer("intermediate_size", defaults.get("intermediate_size")),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "norm_eps": keys.number("rms_norm_eps", defaults.get("rms_norm_eps", 1e-6)),
        "activation": keys.choice("hidden_act", tuple(ACTIVATIONS), defaults.get("hidden_act", "silu")),
        "scales": (head_dim**-0.5,) * layers,
        "windows": (None,) * layers,
        "rope": choices["rope"] if "rope" in choices else keys.rope(max_position_embeddings),
    }
    config = DecoderConfig(**keys.common(defaults) | fields | choices)
    rotated = head_dim if config.rotary_size is None else config.rotary_size
    if config.rope is not None and (rotated % 2 or not rotated):
        raise BareloopError(
            f"config.json: head_dim = {head_dim} is odd, and rotary positions need pairs"
            if rotated == head_dim
            else f"config.json: {rotated} of a head's {head_dim} dimensions are rotated, which must be an even number"
        )
    return config


class Block(nn.Module):
    """x += attention(x); x += mlp(x), with norms before or after each branch; or both branches in parallel."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.parallel, self.one_norm = config.parallel, config.one_norm
        self.attention = Attention(config.attention(layer))
        mlp = GatedMLP if config.gated else MLP
        self.mlp = mlp(config.hidden_size, config.intermediate_size, config.activation, config.mlp_bias)
        self.attention_norm_before = _norm(config, config.norm_before)
        self.attention_norm_after = _norm(config, config.norm_after)
        self.mlp_norm_before = _norm(config, config.norm_before and not config.one_norm)
        self.mlp_norm_after = _norm(config, config.norm_after)

    def forward(
        self,
        x: Tensor,
        delta: Tensor | None,
        rotary: tuple[Tensor, Tensor] | None,
        step: Step,
        view: LayerView | None,
        index: int,
        tail: Tail,
    ) -> tuple[Tensor, Tensor]:
        """x [N, hidden], to which the block before adds `delta` -> new x and delta, of all rows or those of `tail`.

        A sum and the norm after it are one operation. `index`: the layer's index in the view's cache.
        """
        x, normed = add_and_norm(x, delta, self.attention_norm_before)
        attended = self.attention_norm_after(self.attention(normed, rotary, step, view, index, tail))
        if tail is not None:
            x, normed = x[tail[1]], normed[tail[1]]
        if self.parallel:
            x, mlp_input = x + attended, normed if self.one_norm else self.mlp_norm_before(x)
        else:
            x, mlp_input = add_and_norm(x, attended, self.mlp_norm_before)
        return x, self.mlp_norm_after(self.mlp(mlp_input))

    def kernel_modules(self) -> list[Any]:
        """The modules whose weights the C++ kernel takes, in its order; None for those that the family lacks."""
        attention, mlp = self.attention, self.mlp
        products = [attention.qkv, attention.out, mlp.gate_up if isinstance(mlp, GatedMLP) else mlp.up, mlp.down]
        norms = [self.attention_norm_before, self.attention_norm_after, self.mlp_norm_before, self.mlp_norm_after]
        return [*products, *norms, getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)]


class Decoder(Model):
    """A decoder-only transformer: a pure function of the step and the state that the caller passes."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config: DecoderConfig = config
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        if config.rope is None:
            self.positions = Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = _norm(config)
        self.head = Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        if config.tie_word_embeddings:
            self.head.share(self.embed)
        with torch.device("cpu"):  # real tensors even if the modules are built on the meta device
            self.rotaries = {
                rope: Rotary(rope, config.head_dim if config.rotary_size is None else config.rotary_size)
                for rope in dict.fromkeys(map(config.ropes, range(config.num_layers)))
                if rope is not None
            }

    def forward(self, step: Step, state: State | None = None, last: Sequence[int] | None = None) -> Tensor:
        config = self.config
        view = cast("KVState | PagedState", state).view(step) if state is not None else None
        if last is not None and list(last) == step.lengths.tolist():
            last = None  # all positions are needed
        x = self.embed(step.tokens)
        if config.embedding_scale != 1:
            x = x * torch.tensor(config.embedding_scale, dtype=x.dtype)  # rounded to the weights' dtype, as in training
        if step.images is not None:
            x = step.images.merge(x)
        if config.rope is None:
            x = x + self.positions(step.positions)
        dtype = torch.promote_types(x.dtype, torch.float32) if config.rotary_in_float32 else x.dtype
        tables = {rope: rotary(step.positions, step.lengths, dtype) for rope, rotary in self.rotaries.items()}
        ops = kernels.for_input(x) if isinstance(view, StateView) and last is None and self.fused else None
        if ops is not None and isinstance(view, StateView):
            angles = [angle for table in tables.values() for angle in table]
            weights = [named.get(name) for named in self.kernel_tensors for name in ("weight", "scales", "bias")]
            adapters = self.kernel_adapters.joined(x.dtype)
            x = ops.blocks(x, angles, *view.pieces(), weights, *self.kernel_choices, adapters.data, adapters.sizes)
            view.commit()
            return self.norm(x)
        delta = None
        for layer, block in enumerate(self.layers):
            rope = config.ropes(layer)
            cache_view, index = view.of(layer) if view is not None else (None, layer)
            tail = None
            if cache_view is not None and last is not None and layer == config.num_layers - 1:
                tail = cache_view.tail(last)
            table = None if rope is None else tables[rope]
            x, delta = self.run_block(block, x, delta, table, step, cache_view, index, tail)
        if view is not None:
            view.commit()
        return add_and_norm(x, delta, self.norm)[1]

    @cached_property
    def kernel_tensors(self) -> list[Mapping[str, Tensor | None]]:
        """The live parameters of all blocks' modules by name, in the C++ kernel's order."""
        return [{} if module is None else module._parameters for module in self._kernel_modules()]

    @cached_property
    def kernel_adapters(self) -> AdaptersOf:
        """The live adapters of these modules."""
        return AdaptersOf((i, module) for i, module in enumerate(self._kernel_modules()) if isinstance(module, Linear))

    def _kernel_modules(self) -> list[Any]:
        return [module for block in cast("list[Block]", list(self.layers)) for module in block.kernel_modules()]

    @cached_property
    def kernel_choices(self) -> tuple[Any, ...]:
        """The family's choices as the C++ kernel takes them."""
        config = self.config
        ropes = [config.ropes(layer) for layer in range(config.num_layers)]
        return (
            [-1 if rope is None else list(self.rotaries).index(rope) for rope in ropes],
            list(config.scales),
            [config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim],
            config.norm, config.qk_norm or "", ACTIVATIONS[config.activation],
            config.norm_eps, config.attention_softcap or 0.0, config.clip_qkv or 0.0,
            config.norm_before, config.norm_after, config.parallel, config.one_norm, config.gated,
        )  # fmt: skip

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self.head(hidden)
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def new_state(self, budget: Budget | None = None) -> KVState | PagedState:
        config, embed = self.config, self.embed
        shape = (config.num_layers, config.num_kv_heads, config.head_dim)
        place = embed.dtype, embed.weight.device
        if embed.weight.device.type in gpu.DEVICE_TYPES:
            return PagedState(*shape, *place, config.windows, budget)
        return KVState(*shape, *place, config.windows)

    def costs(self, context: int) -> Iterator[Cost]:
        config = self.config
        blocks = cast("list[Block]", list(self.layers))
        yield Cost.of_lookup("embedding", self.embed)
        if config.rope is None:
            yield Cost.of_lookup("positions", self.positions)
        yield Cost.of_weights("attention projections", (block.attention for block in blocks))
        cache = 2 * config.num_kv_heads * config.head_dim * self.embed.dtype.itemsize
        visible = [context + 1 if window is None else min(context + 1, window) for window in config.windows]
        flops = 4 * config.num_heads * config.head_dim * sum(visible)
        yield Cost(f"keys and values at {context:,} tokens", 0, cache * sum(visible), flops)
        yield Cost.of_weights("MLP", (block.mlp for block in blocks))
        yield Cost.of_weights(
            "norms",
            (self.norm, *(norm for block in blocks for name, norm in block.named_children() if "norm" in name)),
        )
        yield Cost.of_head(self.head, config.tie_word_embeddings)


def _norm(config: DecoderConfig, wanted: bool = True) -> nn.Module:
    return NORMS[config.norm](config.hidden_size, config.norm_eps) if wanted else nn.Identity()
