"""Llama 2, 3, 3.1, 3.2 and TinyLlama: the plain decoder. RMSNorm before each branch, SwiGLU, rotary positions."""

from engine.config import Keys
from engine.errors import BareloopError
from engine.layers import ACTIVATIONS
from engine.models.decoder import Decoder, DecoderConfig
from engine.models.family import Family


def configure(keys: Keys) -> DecoderConfig:
    """The keys that Llama shares with its relatives, and its optional biases."""
    heads = keys.integer("num_attention_heads")
    kv_heads = keys.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise BareloopError(f"config.json: {heads} attention heads are no multiple of {kv_heads} key-value heads")
    hidden_size = keys.integer("hidden_size")
    head_dim = keys.integer("head_dim", max(hidden_size // heads, 1))
    if head_dim % 2:
        raise BareloopError(f"config.json: head_dim = {head_dim} is odd, and rotary positions need pairs")
    max_position_embeddings = keys.integer("max_position_embeddings", 2048)
    bias = keys.flag("attention_bias", False)
    common = keys.common()
    return DecoderConfig(
        **common,
        max_position_embeddings=max_position_embeddings,
        intermediate_size=keys.integer("intermediate_size"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=keys.number("rms_norm_eps", 1e-6),
        rope=keys.rope(max_position_embeddings),
        activation=keys.choice("hidden_act", tuple(ACTIVATIONS), "silu"),
        windows=(None,) * common["num_layers"],
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=keys.flag("mlp_bias", False),
    )


NAMES = {
    "embed": ("model.embed_tokens",),
    "layers.*.attention_norm_before": ("model.layers.*.input_layernorm",),
    "layers.*.attention.qkv": tuple(f"model.layers.*.self_attn.{x}_proj" for x in "qkv"),
    "layers.*.attention.out": ("model.layers.*.self_attn.o_proj",),
    "layers.*.mlp_norm_before": ("model.layers.*.post_attention_layernorm",),
    "layers.*.mlp.gate_up": ("model.layers.*.mlp.gate_proj", "model.layers.*.mlp.up_proj"),
    "layers.*.mlp.down": ("model.layers.*.mlp.down_proj",),
    "norm": ("model.norm",),
    "head": ("lm_head",),
}

FAMILY = Family("llama", configure, Decoder, NAMES)
