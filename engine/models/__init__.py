"""The model families, by the `model_type` of their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.models import (
    bert,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    llama,
    mamba,
    mistral,
    olmo,
    olmo2,
    phi,
    qwen2,
    qwen3,
    rwkv,
)
from engine.models.config import ModelConfig
from engine.models.config_reader import Keys
from engine.models.family import Family
from engine.models.vision import smolvlm
from engine.runtime.errors import BareloopError, quote

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        *(llama.FAMILY, mistral.FAMILY, qwen2.FAMILY, qwen3.FAMILY, olmo.FAMILY, olmo2.FAMILY),
        *(gemma.FAMILY, gemma2.FAMILY, gemma3.FAMILY, gemma3.WITH_IMAGES, phi.FAMILY, gpt_neox.FAMILY),
        *(gpt2.FAMILY, gpt2.NEO, mamba.FAMILY, rwkv.FAMILY, bert.FAMILY, smolvlm.FAMILY, smolvlm.IDEFICS3),
    )
}


def configure(raw: Mapping[str, Any]) -> tuple[Family, ModelConfig]:
    """Parse a config.json: -> its family and configuration.

    Raises `BareloopError` for an unknown `model_type`, a value out of range, or a key that would change the mathematics
    in a way that the family does not implement.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        problem = "no model_type" if model_type is None else f"model_type {quote(model_type)}, which is not implemented"
        raise BareloopError(f"config.json has {problem}; known: {known}")
    family = FAMILIES[model_type]
    keys = Keys(raw, family.key_names)
    config = family.configure(keys)
    keys.refuse_unread()
    return family, config
