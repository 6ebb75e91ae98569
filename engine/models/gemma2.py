"""Gemma 2: Gemma with norms before and after each branch, soft-capped scores and logits, windows on even layers."""

from engine.models import gemma, llama
from engine.models.config_reader import Keys
from engine.models.decoder import Decoder, DecoderConfig, decoder_config
from engine.models.family import Family


def configure(keys: Keys) -> DecoderConfig:
    """Scores are scaled by `query_pre_attn_scalar`, independent of the head size."""
    layers = keys.layers()
    types = keys.layer_types([("sliding_attention", "full_attention")[layer % 2] for layer in range(layers)])
    window = keys.window("sliding_window", 4096)
    return decoder_config(
        keys,
        defaults={**gemma.DEFAULTS, "num_key_value_heads": 4},
        **gemma.choices(keys),
        norm_after=True,
        scales=(keys.number("query_pre_attn_scalar", 256) ** -0.5,) * layers,
        windows=tuple(window if kind == "sliding_attention" else None for kind in types),
        attention_softcap=keys.optional("attn_logit_softcapping", 50.0),
        logit_softcap=keys.optional("final_logit_softcapping", 30.0),
    )


NAMES = llama.NAMES | {
    "layers.*.attention_norm_after": ("model.layers.*.post_attention_layernorm",),
    "layers.*.mlp_norm_before": ("model.layers.*.pre_feedforward_layernorm",),
    "layers.*.mlp_norm_after": ("model.layers.*.post_feedforward_layernorm",),
}

FAMILY = Family(
    "gemma2",
    configure,
    Decoder,
    NAMES,
    initial=gemma.INITIAL,
    checkpoints=("google/gemma-2-2b", "google/gemma-2-9b"),
)
