"""The families, by the `model_type` of their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.config import Keys, ModelConfig
from engine.errors import BareloopError
from engine.models import llama, mistral, olmo2, qwen2, qwen3
from engine.models.family import Family

FAMILIES: dict[str, Family] = {
    module.FAMILY.model_type: module.FAMILY for module in (llama, mistral, olmo2, qwen2, qwen3)
}


def configure(raw: Mapping[str, Any]) -> tuple[Family, ModelConfig]:
    """The family and the configuration that a config.json asks for.

    Raises `BareloopError` for an unknown `model_type`, a value out of range, and a key that would change the
    mathematics in a way that the family does not implement.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        named = "no model_type" if model_type is None else f"model_type {model_type!r}, which is not implemented"
        raise BareloopError(f"config.json has {named}; known: {known}")
    family = FAMILIES[model_type]
    keys = Keys(raw)
    config = family.configure(keys)
    keys.refuse_unread()
    return family, config
