"""Qwen3: Llama with a norm on every head of q and k before the rotation, and windows as in Qwen2."""

from engine.models import llama, qwen2
from engine.models.config_reader import Keys
from engine.models.decoder import Decoder, DecoderConfig, decoder_config
from engine.models.family import Family


def configure(keys: Keys) -> DecoderConfig:
    """`head_dim` is independent: heads x head_dim need not be the hidden size."""
    bias = keys.flag("attention_bias", False)
    return decoder_config(
        keys,
        defaults={**qwen2.DEFAULTS, "head_dim": 128},
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="head",
        windows=qwen2.windows(keys),
    )


NAMES = llama.NAMES | {
    "layers.*.attention.q_norm": ("model.layers.*.self_attn.q_norm",),
    "layers.*.attention.k_norm": ("model.layers.*.self_attn.k_norm",),
}

FAMILY = Family("qwen3", configure, Decoder, NAMES, checkpoints=("Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B"))
