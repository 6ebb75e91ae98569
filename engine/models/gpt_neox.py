"""GPT-NeoX and Pythia: parallel branches, each with a layer norm; a quarter of each head is rotated."""

from typing import Any

import torch
from torch import Tensor

from engine.models.config_reader import Keys
from engine.models.decoder import Decoder, DecoderConfig, decoder_config
from engine.models.family import Family, Layout


def configure(keys: Keys) -> DecoderConfig:
    """x += attention(norm(x)) + mlp(other_norm(x)); serial without `use_parallel_residual`."""
    head_dim = keys.integer("hidden_size") // keys.integer("num_attention_heads")
    bias = keys.flag("attention_bias", True)
    for name in ("partial_rotary_factor", "rope_theta"):
        keys.check_both_names(name)
    return decoder_config(
        keys,
        defaults={
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "hidden_act": "gelu",
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
        num_kv_heads=keys.integer("num_attention_heads"),
        norm="layer",
        parallel=keys.flag("use_parallel_residual", True),
        rotary_size=int(keys.rotary_fraction(0.25) * head_dim),
        qkv_bias=bias,
        out_bias=bias,
        gated=False,
        mlp_bias=True,
    )


def _by_head(tensor: Tensor, config: Any) -> Tensor:
    """Rows of q, k, v head by head -> rows of all q, all k, all v."""
    return torch.unflatten(tensor, 0, (config.num_heads, 3, config.head_dim)).transpose(0, 1).flatten(0, 2)


def _by_projection(tensor: Tensor, config: Any) -> Tensor:
    """The inverse of `_by_head`."""
    return torch.unflatten(tensor, 0, (3, config.num_heads, config.head_dim)).transpose(0, 1).flatten(0, 2)


NAMES = {
    "embed": ("gpt_neox.embed_in",),
    "layers.*.attention_norm_before": ("gpt_neox.layers.*.input_layernorm",),
    "layers.*.attention.qkv": ("gpt_neox.layers.*.attention.query_key_value",),
    "layers.*.attention.out": ("gpt_neox.layers.*.attention.dense",),
    "layers.*.mlp_norm_before": ("gpt_neox.layers.*.post_attention_layernorm",),
    "layers.*.mlp.up": ("gpt_neox.layers.*.mlp.dense_h_to_4h",),
    "layers.*.mlp.down": ("gpt_neox.layers.*.mlp.dense_4h_to_h",),
    "norm": ("gpt_neox.final_layer_norm",),
    "head": ("embed_out",),
}

FAMILY = Family(
    "gpt_neox",
    configure,
    Decoder,
    NAMES,
    ignored=("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"),
    layouts={"layers.*.attention.qkv": Layout(lambda shape: shape, load=_by_head, save=_by_projection)},
    aliases=((r"^lm_head\.", "embed_out."),),
    modules=((r"^embed_out\b", "lm_head"),),
    key_names={
        "rms_norm_eps": "layer_norm_eps",
        "partial_rotary_factor": "rotary_pct",
        "rope_theta": "rotary_emb_base",
    },
    checkpoints=("EleutherAI/pythia-70m", "EleutherAI/pythia-1b", "EleutherAI/pythia-2.8b"),
)
