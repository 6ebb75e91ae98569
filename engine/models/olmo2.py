"""OLMo-2: Llama with its norms after each branch, a norm over the whole width of q and k, and float32 details."""

from engine.models import llama
from engine.models.config_reader import Keys
from engine.models.decoder import Decoder, DecoderConfig, decoder_config
from engine.models.family import Family


def configure(keys: Keys) -> DecoderConfig:
    """x += norm(attention(x)); x += norm(mlp(x))."""
    bias = keys.flag("attention_bias", False)
    return decoder_config(
        keys,
        defaults={"max_position_embeddings": 2048, "eos_token_id": 50_279, "rms_norm_eps": 1e-5},
        qkv_bias=bias,
        out_bias=bias,
        norm_before=False,
        norm_after=True,
        qk_norm="width",
        norm="RMS, float32",
        rotary_in_float32=True,
    )


NAMES = llama.NAMES | {
    "layers.*.attention_norm_after": ("model.layers.*.post_attention_layernorm",),
    "layers.*.mlp_norm_after": ("model.layers.*.post_feedforward_layernorm",),
    "layers.*.attention.q_norm": ("model.layers.*.self_attn.q_norm",),
    "layers.*.attention.k_norm": ("model.layers.*.self_attn.k_norm",),
}

FAMILY = Family("olmo2", configure, Decoder, NAMES, checkpoints=("allenai/OLMo-2-0425-1B", "allenai/OLMo-2-1124-7B"))
