"""Mistral 7B: Llama with a sliding window on every layer, unless config.json says null."""

from dataclasses import replace

from engine.config import Keys
from engine.models import llama
from engine.models.decoder import Decoder, DecoderConfig
from engine.models.family import Family


def configure(keys: Keys) -> DecoderConfig:
    """An absent `sliding_window` means 4,096, the default of transformers' class; null means none."""
    config = llama.configure(keys)
    window = None
    if keys.raw.get("sliding_window", 4096) is not None:
        window = keys.integer("sliding_window", 4096)
    keys.get("sliding_window")
    return replace(config, windows=(window,) * config.num_layers)


FAMILY = Family("mistral", configure, Decoder, llama.NAMES)
