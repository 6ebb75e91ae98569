"""Exact nearest neighbours among the vectors of a memory, with numpy or with sqlite-vec: the same results.

numpy multiplies a copy of the vectors in memory; sqlite-vec reads them from the file. For 100,000 vectors of 384
numbers on two cores that takes some 20 ms and 154 MB, or some 150 ms and no memory (sqlite-vec 0.1.9).
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Collection
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from chat.memory.database import Database
from chat.memory.pieces import Filter
from engine.runtime.errors import BareloopError

Vectors = npt.NDArray[np.float32]
Backend = Literal["auto", "numpy", "sqlite-vec"]
MEMORY = 1 << 29  # bytes of vectors up to which `auto` keeps them in memory
MARGIN = 32  # more candidates than asked for, as float32 does not order near ties well


def load_sqlite_vec(connection: sqlite3.Connection) -> bool:
    """Load the extension into a connection. False if this Python cannot, or sqlite-vec is not installed."""
    with contextlib.suppress(AttributeError, ImportError, sqlite3.Error):  # some Pythons have no extensions
        import sqlite_vec

        connection.enable_load_extension(True)
        try:
            sqlite_vec.load(connection)
        finally:
            connection.enable_load_extension(False)
    with contextlib.suppress(sqlite3.Error):
        return bool(connection.execute("SELECT vec_version()").fetchone())
    return False


class VectorSearch:
    """Finds the nearest vectors of the active embedder."""

    def __init__(self, database: Database, backend: Backend = "auto") -> None:
        """`backend`: numpy, sqlite-vec, or auto: sqlite-vec, where it can be loaded, beyond `MEMORY`."""
        self.database = database
        self.backend = backend
        self.has_sqlite_vec = backend != "numpy" and load_sqlite_vec(database.connection)
        if backend == "sqlite-vec" and not self.has_sqlite_vec:
            raise BareloopError(
                "sqlite-vec cannot be loaded: it needs pip install 'bareloop[memory]', and a Python that was built "
                "with loadable SQLite extensions"
            )
        self._key: tuple[int, int] | None = None  # embedder and generation of what is in memory
        self._ids = np.empty(0, np.int64)
        self._matrix: Vectors = np.empty((0, 0), np.float32)
        self._count = 0

    def nearest(
        self, embedder: int, query: Vectors, depth: int, allowed: Filter, others: Collection[int] = ()
    ) -> dict[int, float]:
        """Ids and cosines of at least the `depth` nearest pieces to a vector [size] of length 1, if there are as many.

        `others`: pieces whose cosines are computed, too, as far as they have vectors. Call it inside a transaction.
        """
        size = len(query)
        fast = self._with_numpy
        if self.has_sqlite_vec:
            total = self.database.one(f"SELECT count(*) FROM vectors_{embedder}") if self.backend == "auto" else 0
            if self.backend == "sqlite-vec" or 4 * size * total > MEMORY:
                fast = self._with_sqlite_vec
        ids = [*{*fast(embedder, query, depth + MARGIN, allowed), *others}]
        if not ids:
            return {}
        rows = self.database.rows(
            f"SELECT piece, vector FROM vectors_{embedder} WHERE piece IN (SELECT value FROM json_each(?))",
            [json.dumps(ids)],
        )
        matrix = np.frombuffer(b"".join(vector for _, vector in rows), np.float32).reshape(-1, size).astype(np.float64)
        # Summed row by row, so that equal vectors have equal cosines: a matrix product may round them differently.
        cosines = (matrix * query.astype(np.float64)).sum(axis=1)
        return {piece: float(cosine) for (piece, _), cosine in zip(rows, cosines, strict=True)}

    def _with_sqlite_vec(self, embedder: int, query: Vectors, count: int, allowed: Filter) -> list[int]:
        condition, values = allowed.condition("piece")
        rows = self.database.rows(
            f"SELECT piece FROM vectors_{embedder} WHERE {condition} "
            "ORDER BY vec_distance_cosine(vector, ?), piece DESC LIMIT ?",
            [*values, query.astype(np.float32).tobytes(), count],
        )
        return [piece for (piece,) in rows]

    def _with_numpy(self, embedder: int, query: Vectors, count: int, allowed: Filter) -> list[int]:
        self._refresh(embedder, len(query))
        similarities = self._matrix[: self._count] @ query.astype(np.float32)
        ids = self._ids[: self._count]
        if allowed.query:
            rows = self.database.rows(allowed.query, allowed.values)
            kept = np.isin(ids, np.fromiter((piece for (piece,) in rows), np.int64, len(rows)))
            similarities, ids = similarities[kept], ids[kept]
        if allowed.exclude:
            kept = np.isin(ids, np.array(allowed.exclude, np.int64), invert=True)
            similarities, ids = similarities[kept], ids[kept]
        if len(ids) > count:
            # Those that tie with the last one stay, too, so that the newest of them can be chosen.
            last = np.partition(similarities, len(ids) - count)[len(ids) - count]
            near = np.flatnonzero(similarities >= last - 1e-6)
            order = np.lexsort((-ids[near], -similarities[near]))
            ids = ids[near][order[: 4 * count]]
        return ids.tolist()

    def _refresh(self, embedder: int, size: int) -> None:
        """Bring the copy in memory up to date: read what is new, or everything if vectors were deleted or replaced."""
        key = (embedder, self.database.one("SELECT value FROM meta WHERE key = 'generation'"))
        if key != self._key:
            self._key, self._count = key, 0
            total = self.database.one(f"SELECT count(*) FROM vectors_{embedder}")
            self._ids, self._matrix = np.empty(total, np.int64), np.empty((total, size), np.float32)
        newest = int(self._ids[self._count - 1]) if self._count else 0
        while rows := self.database.rows(
            f"SELECT piece, vector FROM vectors_{embedder} WHERE piece > ? ORDER BY piece LIMIT 4096", [newest]
        ):
            end = self._count + len(rows)
            if end > len(self._ids):  # doubled, so that a turn does not copy everything
                room = max(end, 2 * self._count)
                self._ids, self._matrix = (_grown(array, room) for array in (self._ids, self._matrix))
            self._ids[self._count : end] = [piece for piece, _ in rows]
            block = np.frombuffer(b"".join(vector for _, vector in rows), np.float32)
            self._matrix[self._count : end] = block.reshape(-1, size)
            self._count, newest = end, rows[-1][0]


def _grown(array: npt.NDArray[Any], room: int) -> npt.NDArray[Any]:
    result = np.empty((room, *array.shape[1:]), array.dtype)
    result[: len(array)] = array
    return result
