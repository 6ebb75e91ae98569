"""Gemma 3: Gemma 2 with norms on the heads of q and k instead of soft-capped scores, and five layers with a window per
full layer, with a rotary base of their own. Of the vision-language models (`gemma3`) the text part is read.
"""

from dataclasses import replace

from engine.models import gemma, gemma2
from engine.models.config_reader import Keys
from engine.models.decoder import Decoder, DecoderConfig, decoder_config
from engine.models.family import Family
from engine.runtime.errors import BareloopError


def configure(keys: Keys) -> DecoderConfig:
    """Layers with a window use `rope_local_base_freq`, unscaled."""
    layers = keys.layers()
    pattern = keys.integer("sliding_window_pattern", 6)
    kinds = ("full_attention", "sliding_attention")
    types = keys.layer_types([kinds[(layer + 1) % pattern > 0] for layer in range(layers)])
    window = keys.window("sliding_window", 4096)
    longest = keys.integer("max_position_embeddings", 131_072)
    rope = keys.rope(longest, 1e6, "full_attention")
    local = keys.rope(longest, 1e4, "sliding_attention")
    if not keys.get("rope_parameters"):
        local = replace(local, theta=keys.number("rope_local_base_freq", 1e4), type="default", factor=None)
    return decoder_config(
        keys,
        defaults={**gemma.DEFAULTS, "max_position_embeddings": longest, "num_key_value_heads": 4},
        **gemma.choices(keys),
        norm_after=True,
        qk_norm="head",
        scales=(keys.number("query_pre_attn_scalar", 256) ** -0.5,) * layers,
        windows=tuple(window if kind == "sliding_attention" else None for kind in types),
        rope=rope,
        local_rope=local,
        logit_softcap=keys.optional("final_logit_softcapping"),
    )


TEXT_DEFAULTS = {  # keys that the larger models' text_config leaves out
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
}


def configure_text_part(keys: Keys) -> DecoderConfig:
    """Read `text_config`. Saved again, the model is a text-only one."""
    text = keys.get("text_config")
    if not isinstance(text, dict):
        raise BareloopError("config.json of model_type 'gemma3' has no text_config")
    outer = {
        name: keys.raw[name] for name in ("bos_token_id", "eos_token_id", "dtype", "torch_dtype") if name in keys.raw
    }
    inner = Keys(
        {**TEXT_DEFAULTS, **outer, **text, "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
    )
    config = configure(inner)
    inner.refuse_unread()
    return config


NAMES = gemma2.NAMES | {
    "layers.*.attention.q_norm": ("model.layers.*.self_attn.q_norm",),
    "layers.*.attention.k_norm": ("model.layers.*.self_attn.k_norm",),
}

FAMILY = Family(
    "gemma3_text",
    configure,
    Decoder,
    NAMES,
    initial=gemma.INITIAL,
    checkpoints=("google/gemma-3-270m", "google/gemma-3-1b-it"),
)
WITH_IMAGES = Family(
    "gemma3",
    configure_text_part,
    Decoder,
    NAMES,
    aliases=(
        (r"^language_model\.model\.|^model\.language_model\.", "model."),
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^(model\.)?(vision_tower|multi_modal_projector)\..*", "vision"),
    ),
    modules=((r"^model\.", "model.language_model."),),
    ignored=("vision",),
    initial=gemma.INITIAL,
    checkpoints=("google/gemma-3-4b-it",),
)
