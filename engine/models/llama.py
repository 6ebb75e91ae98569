"""Llama 2, 3, 3.1, 3.2 and TinyLlama: the plain decoder. RMSNorm before each branch, SwiGLU, rotary positions."""

from engine.models.config_reader import Keys
from engine.models.decoder import Decoder, DecoderConfig, decoder_config
from engine.models.family import Family


def configure(keys: Keys) -> DecoderConfig:
    """Biases are optional, for all four projections of attention or none, and for all of the MLP or none."""
    bias = keys.flag("attention_bias", False)
    return decoder_config(
        keys,
        defaults={"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
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

FAMILY = Family(
    "llama",
    configure,
    Decoder,
    NAMES,
    checkpoints=("meta-llama/Llama-3.2-1B", "meta-llama/Llama-2-7b-hf", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
)
