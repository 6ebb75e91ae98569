"""Hybrid search: the words of a query for FTS5, and the fusion of both lists."""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence

from chat.memory.database import UNSPACED, Database
from chat.memory.pieces import Filter, message_of

WORDS = 0.3  # weight of the words beside the meaning: the best of 0.2 to 0.8 for half of 1,000 paragraphs of SQuAD
DEPTH = 100  # candidates of each list
MAX_FOUND = 10_000  # pieces that BM25 is computed for, at one to two microseconds each
MAX_WORDS = 64  # of a query: those of a long message are enough, and each costs time
RUN = re.compile(f"{UNSPACED.pattern[1:-1]}+")
WORD = re.compile(r"[^\W_]+")


def has_content(query: str) -> bool:
    """Whether a text has anything but space, punctuation and control characters."""
    return any(unicodedata.category(character)[0] in "LMNS" for character in query)


def match_words(query: str) -> list[str]:
    """The words of a free text, each as an FTS5 expression.

    Words are quoted, so that operators, quotes and column names of FTS5 have no meaning. Of scripts without spaces each
    pair of neighbours is a phrase.
    """
    query = unicodedata.normalize("NFC", query)  # so that a letter is one character with its accent
    words: list[str] = []
    for run in RUN.findall(query):
        words += [f"{first} {second}" for first, second in itertools.pairwise(run)] or [run]
    words += [word for word in WORD.findall(RUN.sub(" ", query)) if len(word) < 100]
    distinct = list({word.lower(): word for word in words}.values())
    if len(distinct) > MAX_WORDS:  # a question stands at the beginning or at the end
        distinct = distinct[: MAX_WORDS // 2] + distinct[-MAX_WORDS // 2 :]
    return [f'"{word}"' for word in distinct]


def rarest(database: Database, words: Sequence[str]) -> list[str]:
    """The rarest of these words: as many as are found in no more than `MAX_FOUND` pieces, but at least one.

    Only a large memory is not searched for all of them. Its most frequent words hardly change an order, and take most
    of the time, as BM25 is computed for every piece that has one of them.
    """
    if len(words) * (database.one("SELECT max(id) FROM pieces") or 0) <= MAX_FOUND:
        return list(words)
    count = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)"
    found = sorted((database.one(count, [word, MAX_FOUND]), word) for word in words)
    found = [(number, word) for number, word in found if number]
    sums = itertools.accumulate(number for number, _ in found)
    return [
        word
        for place, ((_, word), total) in enumerate(zip(found, sums, strict=True))
        if not place or total <= MAX_FOUND
    ]


def bm25(database: Database, query: str, depth: int, allowed: Filter) -> dict[int, float]:
    """Ids and scores (higher is better) of the best pieces for the words of a query.

    If more than `MAX_FOUND` pieces have even the rarest of its words, only the newest of them are compared.
    """
    words = rarest(database, match_words(query))
    if not words:
        return {}
    expression = " OR ".join(words)
    condition, values = allowed.condition("rowid")
    where = f"WHERE words MATCH ? AND {condition}"
    last = database.one(
        f"SELECT rowid FROM words {where} ORDER BY rowid DESC LIMIT 1 OFFSET ?", [expression, *values, MAX_FOUND - 1]
    )
    return dict(
        database.rows(
            f"SELECT rowid, -rank FROM words {where} AND rowid >= ? ORDER BY rank, rowid DESC LIMIT ?",
            [expression, *values, last or 0, depth],
        )
    )


def rank(scores: Mapping[int, float], dates: Mapping[int, int], depth: int) -> dict[int, int]:
    """Ranks from 1 of the ids with the highest scores, ties newest first. `dates`: of every id."""
    order = sorted(scores, key=lambda piece: (-scores[piece], -dates[piece], -piece))
    return {piece: place for place, piece in enumerate(order[:depth], 1)}


def fuse(
    by_words: Mapping[int, float], cosines: Mapping[int, float], dates: Mapping[int, int]
) -> list[tuple[int, float]]:
    """Ids of all candidates with their scores, best first, ties newest first.

    A score is the weighted mean of the piece's BM25, as a share of the best one of the query, and its cosine; what a
    piece does not have counts as 0. `by_words`: BM25 by id. `dates`: of every id.
    """
    best = max(by_words.values(), default=1.0)
    scores = {
        piece: WORDS * by_words.get(piece, 0.0) / best + (1 - WORDS) * cosines.get(piece, 0.0)
        for piece in {**by_words, **cosines}
    }
    return sorted(scores.items(), key=lambda item: (-item[1], -dates[item[0]], -item[0]))


def superseded(database: Database, ids: Collection[int], allowed: Filter) -> list[int]:
    """All versions but the newest of the turns among these pieces. Those that are not allowed do not count."""
    rows = database.rows(
        f"""
        WITH found AS (
            SELECT DISTINCT conversation, {message_of("text")} AS message FROM pieces
            WHERE id IN (SELECT value FROM json_each(?)) AND kind = 'turn'
        ), versions AS (
            SELECT id, row_number() OVER (PARTITION BY conversation, message ORDER BY date DESC, id DESC) AS place
            FROM found CROSS JOIN pieces USING (conversation)
            WHERE kind = 'turn' AND {message_of("text")} = message AND id NOT IN (SELECT value FROM json_each(?))
        )
        SELECT id FROM versions WHERE place > 1
        """,
        [json.dumps([*ids]), json.dumps(allowed.exclude)],
    )
    return [number for (number,) in rows]
