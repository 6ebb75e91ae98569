"""Vectors of texts for a memory, from a model of the engine. Loads without torch."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from engine.checkpoints import embedded
from engine.runtime.errors import BareloopError
from engine.runtime.files import read_json

if TYPE_CHECKING:
    from engine.llm import LLM

MINILM, NONE = embedded.MINILM, "none"
# Files of sentence-transformers that decide, beside the weights, which vector a text gets.
SETTINGS = ("config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json")


class Embedder(Protocol):
    """A model that turns texts into vectors. Vectors of embedders with different fingerprints are never compared."""

    name: str
    fingerprint: str
    size: int

    def embed(self, texts: Sequence[str], kind: str = "passage") -> npt.NDArray[np.float32]:
        """Vectors [n, size], each of length 1. `kind`: query or passage, which some models tell apart."""
        ...


class EngineEmbedder:
    """An embedder over `LLM.embed`. Threads can share it."""

    def __init__(self, llm: LLM, name: str, prefixes: Mapping[str, str], weights: str) -> None:
        """`prefixes`: put before a text, by its kind. `weights`: fingerprint of the weights."""
        self.llm = llm
        self.name = name
        self.size = llm.embedding_size
        self.prefixes = dict(prefixes)
        digest = hashlib.sha256(f"{weights} {sorted(self.prefixes.items())}\n".encode())
        for setting in SETTINGS if llm.folder is not None else ():
            path = (llm.folder or Path()) / setting
            digest.update(path.read_bytes() if path.is_file() else b"\0")
        self.fingerprint = digest.hexdigest()
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str], kind: str = "passage") -> npt.NDArray[np.float32]:
        """Vectors [n, size], each of length 1. `kind`: query or passage."""
        prefix = self.prefixes.get(kind, "")
        with self._lock:
            vectors = self.llm.embed([prefix + text for text in texts]).numpy().astype(np.float32)
        # Not every checkpoint normalises. The least length is for a vector of zeros.
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def count(self, text: str) -> int:
        """Number of the model's tokens of a text, without special ones."""
        return len(self.llm.tokenizer.encode(text, add_special_tokens=False))


def default_embedder() -> str | None:
    """The name of the embedding model that needs no download; None if its package is not installed."""
    return embedded.MINILM if find_spec(embedded.MINILM_PACKAGE) is not None else None


def chosen_embedder(name: str | None, device: str = "auto") -> EngineEmbedder | None:
    """Load the embedding model of this name; None for `none`.

    Without a name it is MiniLM if its package is installed, else none, so that nothing is downloaded unasked.
    """
    chosen = default_embedder() if name is None else name
    return None if chosen is None or chosen == NONE else load_embedder(chosen, device=device)


def load_embedder(
    name: str, query_prefix: str | None = None, passage_prefix: str | None = None, **options: Any
) -> EngineEmbedder:
    """Load an embedding model by its name; `options` are those of `LLM.load`.

    The prefixes are by default those that the checkpoint names in config_sentence_transformers.json, else none. E5
    checkpoints do not name theirs: "query: " and "passage: ".
    """
    from engine.checkpoints.opening import weights_fingerprint
    from engine.cli.parser import short_name
    from engine.llm import LLM

    llm = LLM.load(name, **options)
    if llm.folder is None or not llm.has_tokenizer:
        raise BareloopError(f"{name} has no tokenizer; embeddings need one")
    path = llm.folder / "config_sentence_transformers.json"
    prompts = read_json(path).get("prompts") if path.is_file() else None
    named: dict[str, str] = prompts if isinstance(prompts, dict) else {}
    prefixes = {
        "query": named.get("query", "") if query_prefix is None else query_prefix,
        "passage": named.get("passage", named.get("document", "")) if passage_prefix is None else passage_prefix,
    }
    return EngineEmbedder(llm, short_name(name), prefixes, weights_fingerprint(llm.folder, llm.adapter))
