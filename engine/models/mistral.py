"""Mistral 7B: Llama without biases, with a sliding window on every layer unless it is null in config.json."""

from engine.models import llama
from engine.models.config_reader import Keys
from engine.models.decoder import Decoder, DecoderConfig, decoder_config
from engine.models.family import Family


def configure(keys: Keys) -> DecoderConfig:
    """An absent `sliding_window` means 4,096."""
    return decoder_config(
        keys,
        defaults={
            "max_position_embeddings": 131_072,
            "num_key_value_heads": 8,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        windows=(keys.window("sliding_window", 4096),) * keys.layers(),
    )


FAMILY = Family(
    "mistral",
    configure,
    Decoder,
    llama.NAMES,
    checkpoints=("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.3"),
)
