"""A memory: pieces of text in one SQLite file, found by their words and by their meaning.

The file is readable only by its owner, and several programs can use it at once. What is forgotten is nowhere in its
bytes afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, get_args

from chat.memory import search
from chat.memory.database import Database, spaced
from chat.memory.embedding import PieceVectors
from chat.memory.pieces import COLUMNS, KINDS, Filter, Hit, Kind, NewPiece, Piece, Source, encode_date, parse_piece
from chat.memory.vectors import Backend, Vectors, VectorSearch
from engine.runtime.errors import BareloopError, UsageError, quote
from engine.runtime.files import local_path
from engine.text.surrogates import without_surrogates

if TYPE_CHECKING:
    from chat.memory.embedder import Embedder

__all__ = ["Hit", "MemoryStore", "NewPiece", "Piece", "Source", "memory_path"]

Mode = Literal["hybrid", "bm25", "vector"]
MODES = get_args(Mode)
DEFAULT = "default"  # the name of a memory
BATCH = 256  # pieces of a transaction
MAX_ID = 2**63 - 1  # that SQLite has
UNPURGED = "; their bytes go when no other program reads the memory"


def memory_path(name: str = DEFAULT) -> Path:
    """The file of a memory by its name, in the user's data folder. A name with a slash or a suffix is a path."""
    path = local_path(name)
    if len(path.parts) != 1 or path.suffix:
        return path
    import platformdirs

    return platformdirs.user_data_path("bareloop", appauthor=False) / "memory" / f"{name}.db"


class MemoryStore:
    """A memory's file. Threads can share it. Methods raise `BareloopError` with one line."""

    def __init__(self, database: Database, embedder: Embedder | None, backend: Backend) -> None:
        self.database = database
        self.embedder = embedder
        self.vectors = PieceVectors(database, embedder)
        self._search = VectorSearch(database, backend)

    @classmethod
    def open(cls, path: Path, embedder: Embedder | None = None, backend: Backend = "auto") -> MemoryStore:
        """Open a memory, or create it. Without an embedder it is searched by words alone.

        `backend`: what compares vectors, see `VectorSearch`.
        """
        database = Database(path)
        try:
            return cls(database, embedder, backend)
        except BaseException:
            database.close()
            raise

    @property
    def path(self) -> Path:
        return self.database.path

    @property
    def notice(self) -> str:
        """One line that says why pieces are not found by their meaning, or not all of them; empty if they are."""
        return self.vectors.notice()

    def missing(self) -> int:
        """Number of pieces that have no vector of the embedder yet."""
        return self.vectors.missing()

    def reembed(self, progress: Callable[[int], None] | None = None) -> int:
        """Compute all vectors that are missing; see `PieceVectors.reembed`."""
        replaced = self.vectors.usable() is None
        done = self.vectors.reembed(progress)
        if replaced:
            self.database.purge()  # the old vectors can be most of the file
        return done

    def add(self, pieces: Sequence[NewPiece]) -> list[int]:
        """Add pieces, and return their ids. A piece that is there is not added again, but gets the newer date.

        A transaction has at most `BATCH` pieces: so many are lost if the program is killed.
        """
        ids: list[int] = []
        for start in range(0, len(pieces), BATCH):
            batch = pieces[start : start + BATCH]
            vectors = self.embed_new(batch)
            with self.database.writing():
                ids += self.insert(batch, vectors)
        return ids

    def embed_new(self, pieces: Sequence[NewPiece]) -> dict[bytes, Vectors]:
        """The vectors, by digest, of those pieces that the memory does not have. Raises `UsageError` for bad pieces."""
        for piece in pieces:
            if piece.kind not in KINDS:
                raise UsageError(f"kind {quote(piece.kind)}: use {', '.join(KINDS)}")
            if not piece.text.strip():
                raise UsageError("a memory needs a text")
        existing = self.existing([piece.digest for piece in pieces])
        new = {piece.digest: without_surrogates(piece.text) for piece in pieces if piece.digest not in existing}
        return self.vectors.embed_new(new)

    def insert(self, pieces: Sequence[NewPiece], vectors: dict[bytes, Vectors]) -> list[int]:
        """Add pieces with these vectors, inside a transaction. Returns their ids."""
        run, table = self.database.run, self.vectors.table() if vectors else None
        existing = self.existing([piece.digest for piece in pieces])
        ids = []
        for piece in pieces:
            digest, date = piece.digest, encode_date(piece.date)
            source, place, conversation, text = (
                without_surrogates(name) for name in (piece.source, piece.place, piece.conversation, piece.text)
            )
            number = existing.get(digest)
            if number is not None:
                run("UPDATE pieces SET date = max(date, ?), place = ? WHERE id = ?", [date, place, number])
            else:
                number = existing[digest] = run(
                    "INSERT INTO pieces(digest, kind, source, place, conversation, date, text) VALUES (?,?,?,?,?,?,?)",
                    [digest, piece.kind, source, place, conversation, date, text],
                )
                run("INSERT INTO words(rowid, text) VALUES (?, ?)", [number, spaced(text)])
                if table is not None and digest in vectors:
                    run(f"INSERT INTO {table} VALUES (?, ?)", [number, vectors[digest].tobytes()])
            ids.append(number)
        return ids

    def existing(self, digests: Sequence[bytes]) -> dict[bytes, int]:
        """Ids of the pieces that the memory has, by digest."""
        rows = list[tuple[bytes, int]]()
        for start in range(0, len(digests), BATCH):
            batch = digests[start : start + BATCH]
            marks = ",".join("?" * len(batch))
            rows += self.database.rows(f"SELECT digest, id FROM pieces WHERE digest IN ({marks})", batch)
        return dict(rows)

    def search(
        self,
        query: str,
        limit: int = 5,
        kinds: Collection[Kind] | None = None,
        conversation: str | None = None,
        since: datetime | None = None,
        exclude: Collection[int] = frozenset(),
        mode: Mode = "hybrid",
    ) -> list[Hit]:
        """The best pieces for a query, best first, ties newest first; of equal texts only the first.

        Of all versions of a turn, which are replies to the same message in the same conversation, only the newest one
        that is not in `exclude` is found.

        `kinds`, `conversation`, `since`: only such pieces. `exclude`: ids that are not wanted. `mode`: by words (bm25),
        by meaning (vector), or both (hybrid), which is bm25 where there are no vectors. Raises `BareloopError` for the
        mode vector without vectors of our embedder.
        """
        if mode not in MODES:
            raise UsageError(f"mode {quote(mode)}: use {', '.join(MODES)}")
        if limit < 1:
            raise UsageError(f"limit {limit}: use 1 or more")
        query = without_surrogates(query)
        use_vectors = mode != "bm25" and self.vectors.usable() is not None
        if mode == "vector" and not use_vectors and self.count():
            raise BareloopError(self.notice)
        vector = self.vectors.embed([query], "query")[0] if use_vectors and search.has_content(query) else None
        allowed = Filter.of(kinds, conversation, since, exclude)
        depth = max(search.DEPTH, 4 * limit)
        by_words, by_meaning = dict[int, float](), dict[int, float]()
        with self.database.reading():
            recorded = self.vectors.usable()  # again: another program may have replaced the vectors
            while True:
                if mode != "vector":
                    by_words = search.bm25(self.database, query, depth, allowed)
                if vector is not None and recorded is not None:
                    by_meaning = self._search.nearest(recorded.id, vector, depth, allowed, by_words)
                if not (older := search.superseded(self.database, {**by_words, **by_meaning}, allowed)):
                    break
                allowed = allowed.without(older)  # and others in their place
            pieces = {piece.id: piece for piece in self.get({**by_words, **by_meaning})}
        dates = {number: encode_date(piece.date) for number, piece in pieces.items()}
        ranks = [search.rank(scores, dates, depth) for scores in (by_words, by_meaning)]
        hits: dict[str, Hit] = {}
        candidates = {**ranks[0], **ranks[1]}
        for number, score in search.fuse(by_words, by_meaning, dates):
            if number not in candidates:
                continue
            piece = pieces[number]
            hit = Hit(piece, score, ranks[0].get(number), ranks[1].get(number), by_meaning.get(number))
            hits.setdefault(piece.text, hit)
            if len(hits) == limit:
                break
        return list(hits.values())

    def pieces(
        self, kinds: Collection[Kind] | None = None, source: str | None = None, limit: int | None = None
    ) -> list[Piece]:
        """Pieces, newest first."""
        condition, values = Filter.of(kinds, source=source).condition("id")
        rows = self.database.rows(
            f"SELECT {COLUMNS} FROM pieces WHERE {condition} ORDER BY date DESC, id DESC LIMIT ?",
            [*values, -1 if limit is None else limit],
        )
        return [parse_piece(row) for row in rows]

    def get(self, ids: Iterable[int]) -> list[Piece]:
        """Pieces by their ids, in this order; those that there are."""
        numbers = [number for number in ids if 0 < number <= MAX_ID]
        found: dict[int, Piece] = {}
        for start in range(0, len(numbers), BATCH):
            batch = numbers[start : start + BATCH]
            marks = ",".join("?" * len(batch))
            rows = self.database.rows(f"SELECT {COLUMNS} FROM pieces WHERE id IN ({marks})", batch)
            found |= {row[0]: parse_piece(row) for row in rows}
        return [found[number] for number in numbers if number in found]

    def count(self) -> int:
        """Number of pieces."""
        return int(self.database.one("SELECT count(*) FROM pieces"))

    def sources(self) -> list[Source]:
        """The documents, by path."""
        rows = self.database.rows(
            "SELECT path, hash, (SELECT count(*) FROM pieces WHERE source = path AND kind = 'document') FROM documents "
            "ORDER BY path"
        )
        return [Source(*row) for row in rows]

    def set_source(self, path: str, content: str) -> None:
        """Record the SHA-256 of a document's content, empty until all of it is added. Inside a transaction."""
        self.database.run(
            "INSERT INTO documents VALUES (?, ?) ON CONFLICT(path) DO UPDATE SET hash = excluded.hash", [path, content]
        )

    def forget(self, ids: Iterable[int], compact: bool = True) -> int:
        """Delete pieces, and remove them from the bytes of the file. Returns how many there were.

        Without `compact` some of their bytes may stay until the next deletion, or until the memory is closed: for a
        large memory, rewriting the file takes seconds.
        """
        with self.database.writing():
            count = self.delete(ids)
            self.database.run(
                "DELETE FROM documents WHERE hash != '' AND NOT EXISTS (SELECT 1 FROM pieces WHERE source = path)"
            )
        if compact:
            self.purge()
        return count

    def forget_source(self, source: str) -> int:
        """Forget all pieces of a source, and a document's name. Returns how many pieces there were."""
        with self.database.writing():
            count = self.delete(piece.id for piece in self.pieces(source=source))
            if self.database.change("DELETE FROM documents WHERE path = ?", [source]):
                self.mark_deleted()  # its name, too
        self.purge()
        return count

    def clear(self) -> int:
        """Forget everything. Returns how many pieces there were."""
        with self.database.writing():
            count = self.delete(number for (number,) in self.database.rows("SELECT id FROM pieces"))
            self.database.run("DELETE FROM documents")
            self.mark_deleted()
        self.purge()
        return count

    def delete(self, ids: Iterable[int]) -> int:
        """Delete pieces inside a transaction; `purge` removes them from the bytes of the file afterwards."""
        count = 0
        for piece in self.get(dict.fromkeys(ids)):
            indexed = [piece.id, spaced(piece.text)]
            self.database.run("INSERT INTO words(words, rowid, text) VALUES ('delete', ?, ?)", indexed)
            self.vectors.delete(piece.id)
            self.database.run("DELETE FROM pieces WHERE id = ?", [piece.id])
            count += 1
        if count:
            self.mark_deleted()
        return count

    def mark_deleted(self) -> None:
        """Record, inside a transaction, that the file has bytes of deleted texts, and that vectors are gone."""
        self.database.run("UPDATE meta SET value = value + 1 WHERE key IN ('generation', 'purge')")

    @property
    def is_purged(self) -> bool:
        """Whether nothing that was deleted is left in the bytes of the file."""
        return not self.database.one("SELECT value FROM meta WHERE key = 'purge'")

    @property
    def unpurged(self) -> str:
        """What a message about deleted pieces ends with: nothing, or that their bytes are still there."""
        return "" if self.is_purged else UNPURGED

    def purge(self) -> None:
        """Remove what was deleted from the bytes of the file, if anything was.

        If that fails (another program reads, the disk is full), the next deletion or opening does it: see `is_purged`.
        """
        if not self.is_purged:
            with contextlib.suppress(BareloopError):  # what was deleted is deleted
                self.database.purge()

    def close(self) -> None:
        """Close the file, and remove what was deleted from its bytes."""
        with contextlib.suppress(BareloopError):  # it is closed already
            self.purge()
        self.database.close()

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
