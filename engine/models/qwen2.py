"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, and optionally a window on the upper layers."""

from engine.models import llama
from engine.models.config_reader import Keys
from engine.models.decoder import Decoder, DecoderConfig, decoder_config
from engine.models.family import Family

DEFAULTS = {"max_position_embeddings": 32_768, "num_key_value_heads": 32}


def configure(keys: Keys) -> DecoderConfig:
    """The biases are part of the family, not of config.json."""
    return decoder_config(keys, defaults=DEFAULTS, qkv_bias=True, windows=windows(keys))


def windows(keys: Keys) -> tuple[int | None, ...]:
    """`sliding_window` applies only with `use_sliding_window`, and to the layers from `max_window_layers` on."""
    layers = keys.layers()
    window = keys.window("sliding_window", 4096)
    if not keys.flag("use_sliding_window", False):
        window = None
    lowest = keys.integer("max_window_layers", 28, least=0)
    upper = "full_attention" if window is None else "sliding_attention"
    types = keys.layer_types(["full_attention"] * min(lowest, layers) + [upper] * (layers - lowest))
    return tuple(window if kind == "sliding_attention" else None for kind in types)


FAMILY = Family("qwen2", configure, Decoder, llama.NAMES, checkpoints=("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-7B-Instruct"))
