"""Benchmarks of the chat's memory: adding and searching, and how often a question finds its own paragraph.

pytest --benchmark-only --bench-full bench/test_memory.py, with the folder of shared material beside the project

With --bench-full the memory has 100,000 pieces of 150 words, with vectors of 384 numbers, and 1,000 paragraphs of SQuAD
are embedded by MiniLM; else the memory has 5,000 pieces, and MiniLM is not needed.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from chat.memory.embedder import Embedder, load_embedder
from chat.memory.store import MemoryStore, NewPiece
from chat.memory.vectors import Backend
from engine.checkpoints import embedded
from engine.runtime.errors import BareloopError

SHARED = Path(os.environ.get("BARELOOP_SHARED", Path(__file__).parents[2] / "shared"))
SQUAD = SHARED / "data" / "squad" / "validation.jsonl.gz"
SIZE, WORDS, VOCABULARY = 384, 150, 50_000
PIECES, FULL = 5_000, 100_000
PARAGRAPHS = 1_000
QUERIES = ("what is the word1500 of word700", "word20 word3000", "the word400 that word9000 and word90 have")


class RandomVectors:
    """Random vectors, as only their number and size matter for speed."""

    name = fingerprint = "random"
    size = SIZE

    def __init__(self) -> None:
        self._generator = np.random.default_rng(0)

    def embed(self, texts: Sequence[str], kind: str = "passage") -> npt.NDArray[np.float32]:  # noqa: ARG002
        """Vectors [n, 384] of length 1."""
        vectors = self._generator.standard_normal((len(texts), SIZE), np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def pieces(count: int) -> Iterator[list[NewPiece]]:
    """Texts whose words are as frequent as those of a language (Zipf), a thousand at a time."""
    generator = np.random.default_rng(1)
    names = ["the", "of", "and", "to", "is", "that", "what", "in", *(f"word{number}" for number in range(VOCABULARY))]
    shares = 1 / np.arange(1, len(names) + 1)
    for start in range(0, count, 1000):
        drawn = generator.choice(len(names), (min(1000, count - start), WORDS), p=shares / shares.sum())
        texts = (" ".join(names[word] for word in row) for row in drawn)
        yield [NewPiece(text, "document", "corpus") for text in texts]


@pytest.fixture(scope="module")
def count(request: pytest.FixtureRequest) -> int:
    """Number of pieces."""
    return FULL if request.config.getoption("--bench-full") else PIECES


@pytest.fixture(scope="module")
def filled(count: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory with that many pieces."""
    path = tmp_path_factory.mktemp("memory") / "memory.db"
    with MemoryStore.open(path, RandomVectors()) as store:
        for batch in pieces(count):
            store.add(batch)
    return path


@pytest.mark.benchmark(group="memory: add 1,000 pieces")
def test_adding(benchmark: Any, tmp_path: Path) -> None:
    """Pieces a second, without the time of an embedding model; bytes of the file for each."""
    (batch,) = pieces(1000)
    stores: list[MemoryStore] = []

    def empty() -> tuple[tuple[MemoryStore], dict[str, Any]]:
        stores.append(MemoryStore.open(tmp_path / f"{len(stores)}.db", RandomVectors()))
        return (stores[-1],), {}

    benchmark.pedantic(lambda store: store.add(batch), setup=empty, rounds=3)
    benchmark.extra_info["pieces_per_second"] = 1000 / benchmark.stats.stats.median
    for store in stores:
        store.close()
    benchmark.extra_info["bytes_per_piece"] = stores[0].path.stat().st_size / 1000


@pytest.mark.parametrize("mode", ["bm25", "vector", "hybrid"])
@pytest.mark.parametrize("backend", ["numpy", "sqlite-vec"])
@pytest.mark.benchmark(group="memory: search")
def test_searching(
    benchmark: Any, filled: Path, count: int, backend: Backend, mode: Literal["bm25", "vector", "hybrid"]
) -> None:
    """Three queries, of which some words are frequent."""
    try:
        store = MemoryStore.open(filled, RandomVectors(), backend)
    except BareloopError as error:
        pytest.skip(str(error))
    with store:
        benchmark.pedantic(lambda: [store.search(query, mode=mode) for query in QUERIES], rounds=10, warmup_rounds=2)
    benchmark.extra_info |= {
        "milliseconds_per_query": 1000 * benchmark.stats.stats.median / len(QUERIES),
        "pieces": count,
        "megabytes": filled.stat().st_size / 1e6,
    }


@pytest.mark.benchmark(group="memory: forget a piece")
def test_forgetting(benchmark: Any, filled: Path) -> None:
    """The whole file is rewritten, so that no byte of the text is left."""
    with MemoryStore.open(filled, RandomVectors()) as store:
        ids = iter([piece.id for piece in store.pieces(limit=3)])
        benchmark.pedantic(lambda: store.forget([next(ids)]), rounds=3)


def squad() -> tuple[list[str], list[tuple[str, str]]]:
    """The first paragraphs of SQuAD, and their questions, each with its paragraph."""
    with gzip.open(SQUAD, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    paragraphs = list(dict.fromkeys(row["context"] for row in rows))[:PARAGRAPHS]
    chosen = set(paragraphs)
    return paragraphs, [(row["question"], row["context"]) for row in rows if row["context"] in chosen]


class Remembered:
    """An embedder that embeds many texts at once, in advance, and then looks them up: the modes need the same."""

    def __init__(self, embedder: Embedder, passages: Sequence[str], queries: Sequence[str]) -> None:
        self.name, self.fingerprint, self.size = embedder.name, embedder.fingerprint, embedder.size
        self._vectors = {
            (kind, text): vector
            for kind, texts in (("passage", passages), ("query", queries))
            for text, vector in zip(texts, embedder.embed(texts, kind), strict=True)
        }

    def embed(self, texts: Sequence[str], kind: str = "passage") -> npt.NDArray[np.float32]:
        """The vectors [n, size] of texts that were named."""
        return np.stack([self._vectors[kind, text] for text in texts])


@pytest.fixture(scope="module")
def encyclopedia(full_squad: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryStore]:  # noqa: ARG001
    """A memory of SQuAD's paragraphs."""
    paragraphs, questions = squad()
    embedder = Remembered(load_embedder(embedded.MINILM), paragraphs, [question for question, _ in questions])
    with MemoryStore.open(tmp_path_factory.mktemp("squad") / "memory.db", embedder) as store:
        store.add([NewPiece(paragraph, "document", "squad") for paragraph in paragraphs])
        yield store


@pytest.fixture(scope="module")
def full_squad(request: pytest.FixtureRequest) -> None:
    """Two minutes."""
    if not request.config.getoption("--bench-full"):
        pytest.skip("recall on SQuAD: --bench-full")
    if not SQUAD.exists() or find_spec(embedded.MINILM_PACKAGE) is None:
        pytest.skip(f"needs {SQUAD} and {embedded.MINILM_INSTALL}")


@pytest.mark.parametrize("mode", ["bm25", "vector", "hybrid"])
@pytest.mark.benchmark(group="memory: questions of SQuAD find their paragraph among 1,000")
def test_recall(benchmark: Any, encyclopedia: MemoryStore, mode: Literal["bm25", "vector", "hybrid"]) -> None:
    """Share of the questions whose own paragraph is found first, and among the first five."""
    _, questions = squad()
    found: list[list[str]] = []

    def ask() -> None:
        hits = (encyclopedia.search(question, mode=mode) for question, _ in questions)
        found[:] = [[hit.piece.text for hit in five] for five in hits]

    benchmark.pedantic(ask, rounds=1)
    for depth in (1, 5):
        right = [paragraph in texts[:depth] for (_, paragraph), texts in zip(questions, found, strict=True)]
        benchmark.extra_info[f"recall_at_{depth}"] = sum(right) / len(right)
    benchmark.extra_info |= {"questions": len(questions), "paragraphs": encyclopedia.count()}
