"""ModelConfig: what every family's configuration has. Each family extends it; config_reader.py reads config.json."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Traits:
    """A description of a family in words, for `python -m engine --families`."""

    norms: str
    positions: str
    mixing: str  # how tokens exchange information
    mlp: str
    state: str


@dataclass(frozen=True)
class ModelConfig(ABC):
    """The fields that every family has. `raw` is the parsed config.json, for saving."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    dtype: str | None  # as in config.json
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    initializer_range: float
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @abstractmethod
    def traits(self) -> Traits:
        """The family's building blocks in words."""
