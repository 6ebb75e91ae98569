"""The vectors of a memory's pieces: by which embedder they are, and their computation by another one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chat.memory.database import Database
from chat.memory.vectors import Vectors
from engine.runtime.errors import BareloopError
from engine.runtime.wording import plural

if TYPE_CHECKING:
    from chat.memory.embedder import Embedder

REEMBED_BATCH = 64  # texts of a transaction


@dataclass(frozen=True)
class Recorded:
    """An embedder whose vectors a memory has, in the table vectors_<id>."""

    id: int
    name: str
    fingerprint: str
    size: int


class PieceVectors:
    """The tables of vectors in a memory's file."""

    def __init__(self, database: Database, embedder: Embedder | None) -> None:
        self.database = database
        self.embedder = embedder

    def active(self) -> Recorded | None:
        """The embedder whose vectors are searched; None before the first vector."""
        rows = self.database.rows("SELECT id, name, fingerprint, size FROM embedders WHERE active")
        return Recorded(*rows[0]) if rows else None

    def usable(self) -> Recorded | None:
        """The same, if the queries of our embedder can be compared with its vectors."""
        active = self.active()
        matches = active is not None and self.embedder is not None and active.fingerprint == self.embedder.fingerprint
        return active if matches else None

    def missing(self) -> int:
        """Number of pieces that have no vector of our embedder; 0 without an embedder."""
        if self.embedder is None:
            return 0
        number = self.database.one("SELECT id FROM embedders WHERE fingerprint = ?", [self.embedder.fingerprint])
        total = self.database.one("SELECT count(*) FROM pieces")
        return int(total if number is None else total - self.database.one(f"SELECT count(*) FROM vectors_{number}"))

    def notice(self) -> str:
        """One line that says why pieces are not found by their meaning, or not all of them; empty if they are."""
        if self.embedder is None:
            return "no embedding model: the memory is searched by words alone (BM25)"
        active, missing = self.active(), self.missing()
        if active is not None and active.fingerprint != self.embedder.fingerprint:
            return (
                f"the memory's vectors are of {active.name}, not of {self.embedder.name}: it is searched by words "
                "alone (BM25) until they are computed anew: python -m chat.memory reembed"
            )
        return f"{plural(missing, 'memory')} without vectors: python -m chat.memory reembed" if missing else ""

    def embed(self, texts: Sequence[str], kind: str) -> Vectors:
        """Vectors [n, size] of texts by our embedder. Raises `BareloopError` for anything else that it returns."""
        assert self.embedder is not None
        vectors = np.ascontiguousarray(self.embedder.embed(texts, kind), dtype=np.float32)
        if vectors.shape != (len(texts), self.embedder.size):
            raise BareloopError(f"{self.embedder.name} returned vectors of shape {list(vectors.shape)}")
        if not np.isfinite(vectors).all():
            raise BareloopError(f"{self.embedder.name} returned vectors that are not finite")
        return vectors

    def embed_new(self, texts: dict[bytes, str]) -> dict[bytes, Vectors]:
        """Vectors of texts, by digest; none if the vectors that are searched are of another embedder."""
        if not texts or self.embedder is None or (self.active() is not None and self.usable() is None):
            return {}
        return dict(zip(texts, self.embed(list(texts.values()), "passage"), strict=True))

    def table(self) -> str | None:
        """The table for vectors of our embedder; None if another one is active. Inside a transaction.

        The first embedder of a memory becomes its active one.
        """
        if self.active() is None:
            self._record(active=True)
        usable = self.usable()
        return None if usable is None else f"vectors_{usable.id}"

    def delete(self, piece: int) -> None:
        """Delete all vectors of a piece, inside a transaction."""
        for (number,) in self.database.rows("SELECT id FROM embedders"):
            self.database.run(f"DELETE FROM vectors_{number} WHERE piece = ?", [piece])

    def reembed(self, progress: Callable[[int], None] | None = None) -> int:
        """Compute the vectors that pieces do not have, and return their number. Afterwards our embedder is the active
        one, and those of others are deleted.

        Until then searches use the old vectors. Every batch is stored at once, so that the next call continues a
        computation that was interrupted. `progress`: called with the number of pieces of each batch.
        """
        if self.embedder is None:
            raise BareloopError("no embedding model to compute vectors with; name one")
        with self.database.writing():
            rows = self.database.rows("SELECT id FROM embedders WHERE fingerprint = ?", [self.embedder.fingerprint])
            number = rows[0][0] if rows else self._record(active=False)
        done = 0
        while True:
            batch = self.database.rows(
                f"SELECT id, text FROM pieces WHERE id NOT IN (SELECT piece FROM vectors_{number}) LIMIT ?",
                [REEMBED_BATCH],
            )
            vectors = self.embed([text for _, text in batch], "passage") if batch else ()
            with self.database.writing():
                if not batch and not self.missing():
                    self._activate(number)
                    return done
                for (piece, _), vector in zip(batch, vectors, strict=True):
                    done += self.database.change(  # not for a piece that was deleted in the meantime
                        f"INSERT OR IGNORE INTO vectors_{number} SELECT id, ? FROM pieces WHERE id = ?",
                        [vector.tobytes(), piece],
                    )
                self.database.run("UPDATE meta SET value = value + 1 WHERE key = 'generation'")
            if progress is not None and batch:
                progress(len(batch))

    def _record(self, active: bool) -> int:
        assert self.embedder is not None
        number = self.database.run(
            "INSERT INTO embedders(name, fingerprint, size, active) VALUES (?, ?, ?, ?)",
            [self.embedder.name, self.embedder.fingerprint, self.embedder.size, active],
        )
        self.database.run(f"CREATE TABLE vectors_{number}(piece INTEGER PRIMARY KEY, vector BLOB NOT NULL)")
        return number

    def _activate(self, number: int) -> None:
        for (other,) in self.database.rows("SELECT id FROM embedders WHERE id != ?", [number]):
            self.database.run(f"DROP TABLE vectors_{other}")
            self.database.run("DELETE FROM embedders WHERE id = ?", [other])
        self.database.run("UPDATE embedders SET active = 1")
