"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, and on request a window on the upper layers."""

from dataclasses import replace

from engine.config import Keys
from engine.errors import BareloopError
from engine.models import llama
from engine.models.decoder import Decoder, DecoderConfig
from engine.models.family import Family


def configure(keys: Keys) -> DecoderConfig:
    """The biases are part of the family, not of config.json."""
    config = llama.configure(keys)
    return replace(config, qkv_bias=True, out_bias=False, mlp_bias=False, windows=windows(keys, config.num_layers))


def windows(keys: Keys, layers: int) -> tuple[int | None, ...]:
    """`sliding_window` counts only with `use_sliding_window`, and then on layers from `max_window_layers` up."""
    window = keys.integer("sliding_window", 4096) if keys.flag("use_sliding_window", False) else None
    keys.get("sliding_window")  # read: without the flag it means nothing
    lowest = keys.integer("max_window_layers", 28, least=0)
    upper = "full_attention" if window is None else "sliding_attention"
    types = keys.get("layer_types", ["full_attention"] * min(lowest, layers) + [upper] * (layers - lowest))
    known = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != layers or any(kind not in known for kind in types):
        raise BareloopError(f"config.json: layer_types must name {layers} layers, each one of {', '.join(known)}")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


FAMILY = Family("qwen2", configure, Decoder, llama.NAMES)
