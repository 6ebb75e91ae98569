"""Fixtures of the memory's tests: a memory in a folder of its own, with an embedder that needs no model."""

from __future__ import annotations

import ctypes
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from chat.memory.database import Database
from chat.memory.store import MemoryStore
from chat.memory.vectors import load_sqlite_vec


class Bag:
    """A random direction for each word: texts with the same words have the same vector. Counts the texts it embeds."""

    def __init__(self, name: str = "bag", size: int = 32) -> None:
        self.name, self.fingerprint, self.size = name, f"{name}-{size}", size
        self.texts = 0
        self.fails_after: int | None = None

    def embed(self, texts: Sequence[str], kind: str = "passage") -> np.ndarray:
        rows = []
        for text in texts:
            if self.fails_after is not None and self.texts >= self.fails_after:
                raise KeyboardInterrupt
            self.texts += 1
            row = sum(direction(f"{self.name} {word}", self.size) for word in sorted(re.findall(r"\w+", text.lower())))
            rows.append(row / np.linalg.norm(row) if np.any(row) else np.eye(1, self.size)[0])
        return np.array(rows, np.float32)


@cache
def direction(word: str, size: int) -> np.ndarray:
    return np.random.default_rng(list(word.encode())).standard_normal(size)


@pytest.fixture
def bag() -> Bag:
    return Bag()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "data" / "memory.db"


@pytest.fixture
def open_store(path) -> Iterator[Callable[..., MemoryStore]]:
    """Open the memory: open_store(embedder, backend)."""
    stores = []

    def opener(*arguments) -> MemoryStore:
        stores.append(MemoryStore.open(path, *arguments))
        return stores[-1]

    yield opener
    for store in stores:
        store.close()


@pytest.fixture
def store(open_store, bag) -> MemoryStore:
    return open_store(bag)


@pytest.fixture
def sqlite_vec(tmp_path) -> Iterator[None]:
    """sqlite-vec in every new connection, also where Python was built without loadable extensions."""
    module = pytest.importorskip("sqlite_vec")
    probe = Database(tmp_path / "probe.db")
    loads = load_sqlite_vec(probe.connection)
    probe.close()
    if loads:
        yield
        return
    try:
        library = ctypes.CDLL("libsqlite3.so.0")  # the one that Python is linked with
        extension = ctypes.CDLL(f"{module.loadable_path()}.so").sqlite3_vec_init
    except OSError as error:
        pytest.skip(f"this Python cannot load SQLite extensions ({error})")
    library.sqlite3_auto_extension(extension)
    try:
        if not load_sqlite_vec(sqlite3.connect(":memory:")):
            pytest.skip("this Python cannot load SQLite extensions")
        yield
    finally:
        library.sqlite3_cancel_auto_extension(extension)
