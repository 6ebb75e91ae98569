"""What a memory holds and finds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from engine.text.surrogates import without_surrogates

Kind = Literal["turn", "note", "document"]
KINDS = get_args(Kind)
COLUMNS = "id, text, kind, source, place, conversation, date"  # of a row that is a `Piece`
EPOCH = datetime(1970, 1, 1)
ARROW = "\n→ "  # in a turn, between the message and the reply


@dataclass(frozen=True)
class NewPiece:
    """A text to remember: a turn of a conversation, a note of the user, or part of a document.

    `source`: a document's path, else what the caller likes. `place`: in the source, a heading or a page. `date`: local
    time.
    """

    text: str
    kind: Kind
    source: str
    place: str = ""
    conversation: str = ""  # id
    date: datetime = field(default_factory=datetime.now)

    @property
    def digest(self) -> bytes:
        """Identity: pieces that differ only in place and date are one."""
        parts = (self.kind, self.source, self.conversation, self.text)
        return hashlib.sha256("\0".join(without_surrogates(part) for part in parts).encode()).digest()


@dataclass(frozen=True)
class Piece:
    """A text in the memory. `date`: local time."""

    id: int
    text: str
    kind: Kind
    source: str
    place: str
    conversation: str
    date: datetime


def turn_text(message: str, reply: str) -> str:
    """A turn as it is stored: the message and the reply, in the words in which they were said."""
    return f"{message.strip()}{ARROW}{reply.strip()}" if reply.strip() else message.strip()


def message_of(text: str) -> str:
    """The message of a turn, as an SQL expression, from an expression of its text."""
    return f"substr({text}, 1, instr({text} || '{ARROW}', '{ARROW}') - 1)"


@dataclass(frozen=True)
class Hit:
    """A piece that was found.

    `score`: see `search.fuse`. Ranks count from 1, and are None where a list does not have the piece. `similarity`: the
    cosine to the query, if the piece has a vector.
    """

    piece: Piece
    score: float
    bm25_rank: int | None
    vector_rank: int | None
    similarity: float | None = None


@dataclass(frozen=True)
class Source:
    """A document: its path, the SHA-256 of its content (empty until all of it is added), and its number of pieces."""

    path: str
    hash: str
    pieces: int


def encode_date(date: datetime) -> int:
    """A date as it is stored: microseconds of local time since 1970."""
    local = date if date.tzinfo is None else date.astimezone().replace(tzinfo=None)
    return (local - EPOCH) // timedelta(microseconds=1)


def parse_piece(row: tuple[Any, ...]) -> Piece:
    """The piece of a row of `COLUMNS`."""
    number, text, kind, source, place, conversation, date = row
    return Piece(number, text, kind, source, place, conversation, EPOCH + timedelta(microseconds=date))


@dataclass(frozen=True)
class Filter:
    """Which pieces may be found: those of an SQL query of ids (empty for all) without those in `exclude`."""

    query: str = ""
    values: tuple[Any, ...] = ()
    exclude: tuple[int, ...] = ()

    @staticmethod
    def of(
        kinds: Collection[Kind] | None = None,
        conversation: str | None = None,
        since: datetime | None = None,
        exclude: Collection[int] = (),
        source: str | None = None,
    ) -> Filter:
        """The pieces for which all that is not None is true."""
        clauses, values = list[str](), list[Any]()
        if kinds is not None:
            clauses.append(f"kind IN ({','.join('?' * len(kinds))})")
            values += kinds
        for clause, value in (
            ("conversation = ?", conversation),
            ("source = ?", source),
            ("date >= ?", None if since is None else encode_date(since)),
        ):
            if value is not None:
                clauses.append(clause)
                values.append(value)
        query = f"SELECT id FROM pieces WHERE {' AND '.join(clauses)}" if clauses else ""
        return Filter(query, tuple(values), tuple(exclude))

    def without(self, ids: Collection[int]) -> Filter:
        """The same without further pieces."""
        return replace(self, exclude=(*self.exclude, *ids))

    def condition(self, column: str) -> tuple[str, list[Any]]:
        """The filter as an SQL condition on a column of ids, with its values.

        The plus keeps SQLite from looking up each id on its own, which FTS5 would answer with a search for each.
        """
        conditions, values = ["TRUE"], list(self.values)
        if self.query:
            conditions.append(f"+{column} IN ({self.query})")
        if self.exclude:
            conditions.append(f"+{column} NOT IN (SELECT value FROM json_each(?))")
            values.append(json.dumps(self.exclude))
        return " AND ".join(conditions), values
