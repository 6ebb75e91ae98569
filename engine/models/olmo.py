"""OLMo: Llama with layer norms that have no weights, clipped q, k and v, and rotation in float32."""

from engine.models import llama
from engine.models.config_reader import Keys
from engine.models.decoder import Decoder, DecoderConfig, decoder_config
from engine.models.family import Family


def configure(keys: Keys) -> DecoderConfig:
    """The norms' epsilon is part of the family, not of config.json."""
    bias = keys.flag("attention_bias", False)
    return decoder_config(
        keys,
        defaults={"max_position_embeddings": 2048, "eos_token_id": 50_279},
        norm="layer, no weights",
        norm_eps=1e-5,
        rotary_in_float32=True,
        clip_qkv=keys.optional("clip_qkv"),
        qkv_bias=bias,
        out_bias=bias,
    )


NAMES = {name: tensors for name, tensors in llama.NAMES.items() if "norm" not in name}

FAMILY = Family("olmo", configure, Decoder, NAMES, checkpoints=("allenai/OLMo-1B-hf", "allenai/OLMo-7B-hf"))
