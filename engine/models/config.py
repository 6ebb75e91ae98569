"""config.json, in both of its dialects, as frozen dataclasses.

transformers 4 wrote `rope_theta` beside `rope_scaling` and `torch_dtype`; version 5 writes
`rope_parameters` and `dtype`. `Keys` reads either, keeps account of what a family has read, and
refuses what would change the mathematics without anybody having read it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Traits:
    """A family in words, for a table of them all."""

    norms: str
    positions: str
    mixing: str  # of tokens with each other
    mlp: str
    state: str


@dataclass(frozen=True)
class ModelConfig(ABC):
    """What every family has. `raw` is config.json as read, for saving."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    dtype: str | None  # as config.json names it
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    initializer_range: float
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @abstractmethod
    def traits(self) -> Traits:
        """What the family is made of, in words."""
