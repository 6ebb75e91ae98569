"""Qwen3: Llama with a norm on every head of q and k before the rotation, and windows as in Qwen2."""

from dataclasses import replace

from engine.config import Keys
from engine.models import llama, qwen2
from engine.models.decoder import Decoder, DecoderConfig
from engine.models.family import Family


def configure(keys: Keys) -> DecoderConfig:
    """`head_dim` stands on its own (128 where absent): heads x head_dim need not be the hidden size."""
    config = llama.configure(keys)
    head_dim = keys.integer("head_dim", 128)
    return replace(config, qk_norm="head", head_dim=head_dim, windows=qwen2.windows(keys, config.num_layers))


NAMES = llama.NAMES | {
    "layers.*.attention.q_norm": ("model.layers.*.self_attn.q_norm",),
    "layers.*.attention.k_norm": ("model.layers.*.self_attn.k_norm",),
}

FAMILY = Family("qwen3", configure, Decoder, NAMES)
