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
    # Of a model that takes images: the token that stands for each of an image's vectors. None: it takes none.
    image_token_id: int | None = field(default=None, kw_only=True)

    @property
    def tokens_per_tile(self) -> int:
        """Number of vectors that one tile of an image becomes."""
        return 0

    @abstractmethod
    def traits(self) -> Traits:
        """The family's building blocks in words."""
