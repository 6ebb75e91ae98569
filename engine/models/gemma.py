"""Gemma: Llama with norms that store their weight minus one, a scaled embedding, wide heads and a tanh GELU."""

from typing import Any

import torch
from torch import Tensor

from engine.layers.mlp import ACTIVATIONS
from engine.models import llama
from engine.models.config_reader import Keys
from engine.models.decoder import Decoder, DecoderConfig, decoder_config
from engine.models.family import Family

DEFAULTS = {
    "max_position_embeddings": 8192,
    "head_dim": 256,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
    "hidden_act": "gelu_pytorch_tanh",
}


def configure(keys: Keys) -> DecoderConfig:
    """`gelu` in the first configs means its tanh approximation."""
    return decoder_config(keys, defaults={**DEFAULTS, "num_key_value_heads": 16}, **choices(keys, "gelu_pytorch_tanh"))


def choices(keys: Keys, gelu: str = "gelu") -> dict[str, Any]:
    """The choices that all Gemmas share. `gelu`: the activation that this name in config.json stands for."""
    name = "hidden_activation" if keys.get("hidden_activation") else "hidden_act"
    activation = keys.choice(name, tuple(ACTIVATIONS), "gelu_pytorch_tanh")
    bias = keys.flag("attention_bias", False)
    return {
        "norm": "RMS, 1 + w",
        "activation": gelu if activation == "gelu" else activation,
        "embedding_scale": keys.integer("hidden_size") ** 0.5,
        "qkv_bias": bias,
        "out_bias": bias,
    }


def _zero(shape: torch.Size, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return torch.zeros(shape)


INITIAL = dict.fromkeys(("norm.weight", "norm_before.weight", "norm_after.weight"), _zero)

FAMILY = Family(
    "gemma",
    configure,
    Decoder,
    llama.NAMES,
    initial=INITIAL,
    checkpoints=("google/gemma-2b", "google/gemma-7b"),
)
