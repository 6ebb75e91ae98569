"""The SQLite file of a memory: schema, transactions, and the removal of what was forgotten from its bytes.

pieces      id, digest (identity), kind, source, place, conversation, date, text
words       FTS5 index of the texts; it holds no text of its own
embedders   models that vectors were computed with; searches use the one that is active
vectors_N   vector of each piece by embedder N, as float32 in the machine's order
documents   files that were added, with the SHA-256 of their content
meta        numbers: `generation` counts the changes of vectors other than new ones, `purge` tells that texts were
            deleted whose bytes may still be in the file
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from chat.memory.pieces import message_of
from engine.runtime.errors import BareloopError

APPLICATION_ID, VERSION = 0x626C6D6D, 1  # "blmm"
PAGE = 8192  # bytes; five vectors of 384 numbers fit into a page
BUSY_TIMEOUT = 30.0  # seconds to wait for another program
SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('generation', 0), ('purge', 0);
CREATE TABLE pieces(
    id INTEGER PRIMARY KEY AUTOINCREMENT, digest BLOB NOT NULL UNIQUE, kind TEXT NOT NULL, source TEXT NOT NULL,
    place TEXT NOT NULL, conversation TEXT NOT NULL, date INTEGER NOT NULL, text TEXT NOT NULL
);
CREATE INDEX pieces_source ON pieces(source);
CREATE VIRTUAL TABLE words USING fts5(text, content='', tokenize='porter unicode61 remove_diacritics 2');
CREATE TABLE embedders(
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, fingerprint TEXT NOT NULL, size INTEGER NOT NULL,
    active INTEGER NOT NULL
);
CREATE TABLE documents(path TEXT PRIMARY KEY, hash TEXT NOT NULL) WITHOUT ROWID;
"""
# Finds all versions of a turn: they have the same message in the same conversation.
VERSIONS = f"""
CREATE INDEX IF NOT EXISTS pieces_said ON pieces(conversation, {message_of("text")}, date) WHERE kind = 'turn'
"""
# Scripts that are written without spaces: each character is a word of the index.
UNSPACED = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


def spaced(text: str) -> str:
    """A text as it is indexed: with spaces around the characters of scripts that have none between words."""
    return text if text.isascii() else UNSPACED.sub(r" \1 ", text)


class Database:
    """One connection, for all threads of the program. Raises `BareloopError` in one line for every failure."""

    def __init__(self, path: Path) -> None:
        """Open the file, or create it, readable only by its owner."""
        self.path = path
        self._lock = threading.RLock()
        self._depth = 0  # of nested transactions
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise BareloopError(f"cannot open the memory {path}: {error.strerror}") from error
        with self._one_line():
            self.connection = sqlite3.connect(path, BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        try:
            self._prepare_patiently()
        except BaseException:
            self.connection.close()
            raise

    def _prepare_patiently(self) -> None:
        """Prepare, and wait as long as another program creates the file: SQLite does not wait for the change to WAL."""
        deadline = time.monotonic() + BUSY_TIMEOUT
        while True:
            try:
                return self._prepare()
            except BareloopError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _prepare(self) -> None:
        """Set the connection's options, and create the tables of a new file. Raises for another program's file."""
        with self._one_line():
            self.connection.execute(f"PRAGMA page_size={PAGE}")
            tables = self.connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            ((application,), (version,)) = (
                self.connection.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
            )
        if tables and application != APPLICATION_ID:
            raise BareloopError(f"{self.path} is a database of another program, not a memory")
        if tables and version != VERSION:
            raise BareloopError(f"{self.path} has version {version}; this program reads version {VERSION}")
        with self._one_line():
            self.connection.execute("PRAGMA journal_mode=WAL")
            self.connection.execute("PRAGMA secure_delete=ON")
        with contextlib.suppress(OSError):  # the file may be another user's
            self.path.chmod(0o600)
        with self.writing():
            if self.one("SELECT count(*) FROM sqlite_master") == 0:
                for statement in SCHEMA.split(";\n"):
                    self.connection.execute(statement)
                self.connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
                self.connection.execute(f"PRAGMA user_version={VERSION}")
            self.run(VERSIONS)
        if self.one("SELECT value FROM meta WHERE key = 'purge'"):  # a program was killed before it had purged
            with contextlib.suppress(BareloopError):  # another program may be busy; there will be a next time
                self.purge()

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self._lock, self._one_line():
            return self.connection.execute(statement, values).fetchall()

    def one(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """The first value of a query's first row, or None."""
        rows = self.rows(statement, values)
        return rows[0][0] if rows else None

    def run(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Execute a statement that changes rows, inside `writing`. Returns the id of the last inserted row."""
        with self._one_line():
            return self.connection.execute(statement, values).lastrowid or 0

    def change(self, statement: str, values: Sequence[Any] = ()) -> int:
        """The same, but returns the number of rows that were changed."""
        with self._one_line():
            return self.connection.execute(statement, values).rowcount

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """A transaction that writes: all of the block or nothing. Waits for other threads and programs."""
        return self._transaction("BEGIN IMMEDIATE")

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """A transaction that reads: all queries of the block see the same state."""
        return self._transaction("BEGIN")

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        with self._lock:
            if self._depth:  # inside another one
                yield
                return
            with self._one_line():
                self.connection.execute(begin)
            self._depth += 1
            try:
                yield
                with self._one_line():
                    self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1

    def purge(self) -> None:
        """Remove the deleted texts from the bytes of the file and of its write-ahead log.

        SQLite overwrites deleted rows (secure_delete), but the index keeps deleted words until its segments are merged,
        and the log has old pages until it is truncated. If another program keeps that from happening for as long as the
        timeout, the next purge or the next opening does it.
        """
        with self._lock:
            deleted = self.one("SELECT value FROM meta WHERE key = 'purge'")
            with self.writing():
                self.run("INSERT INTO words(words) VALUES ('optimize')")
            with self._one_line():
                self.connection.execute("VACUUM")
                busy = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if not busy:
                with self.writing():
                    self.run("UPDATE meta SET value = 0 WHERE key = 'purge' AND value = ?", [deleted])

    def close(self) -> None:
        """Close the file. The last program removes the write-ahead log."""
        with self._lock:
            self.connection.close()

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            problem = "it is not a memory" if "not a database" in str(error) else str(error)
            raise BareloopError(f"memory {self.path}: {problem}") from error
