"""A memory: what is added is found, once, by words and by meaning; by another model only after its vectors exist."""

from __future__ import annotations

import sqlite3
import stat
import threading
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from chat.memory.store import MemoryStore, NewPiece, memory_path
from engine.runtime.errors import BareloopError, UsageError
from tests.chat.memory.conftest import Bag

DAY = datetime(2026, 5, 1, 12)


def note(text: str, days: int = 0, **fields) -> NewPiece:
    return NewPiece(text, "note", **({"source": "me"} | fields), date=DAY + timedelta(days=days))


def texts(hits) -> list[str]:
    return [hit.piece.text for hit in hits]


def test_a_piece_comes_back_as_it_was_added(store, open_store):
    new = NewPiece("Zoé lives in 北京 \0 😀\nnow", "document", "/a/b.md", "Chapter 1", "talk", DAY)
    (number,) = store.add([new])
    for other in (store, open_store()):
        (piece,) = other.pieces()
        assert piece.id == number
        assert {name: getattr(piece, name) for name in vars(new)} == vars(new)
        assert other.get([number, 999]) == [piece]


def test_the_file_is_private_also_if_it_was_not(store, path, open_store):
    path.chmod(0o644)
    open_store()
    assert {file.name for file in path.parent.iterdir()} >= {"memory.db", "memory.db-wal"}
    store.add([note("x")])
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob("memory.db*")} == {0o600}


def test_an_exact_duplicate_is_stored_once_and_gets_the_newer_date(store):
    first, _, third = store.add([note("tea", 1), note("coffee", 2), note("tea", 5)])
    assert first == third
    assert store.add([note("tea", 0), note("tea", 3, source="you"), note("tea", conversation="c")])[0] == first
    assert [(piece.id, piece.date.day) for piece in store.pieces(limit=2)] == [(first, 6), (3, 4)]
    assert store.count() == 4


def test_search_is_limited_to_what_is_asked_for(store):
    store.add([
        note("red apple", 0),
        NewPiece("red pear", "turn", "talk", conversation="talk", date=DAY + timedelta(days=1)),
        NewPiece("red plum", "document", "/d.md", date=DAY + timedelta(days=2)),
    ])  # fmt: skip
    for mode in ("hybrid", "bm25", "vector"):
        assert set(texts(store.search("red", mode=mode))) == {"red apple", "red pear", "red plum"}
        assert texts(store.search("red", kinds=["turn"], mode=mode)) == ["red pear"]
        assert store.search("red", kinds=[], mode=mode) == []
        assert texts(store.search("red", conversation="talk", mode=mode)) == ["red pear"]
        assert texts(store.search("red", since=DAY + timedelta(days=2), mode=mode)) == ["red plum"]
        assert texts(store.search("red", exclude={1, 2}, mode=mode)) == ["red plum"]
        assert len(store.search("red", limit=2, mode=mode)) == 2
    assert [piece.text for piece in store.pieces(kinds=["note", "turn"])] == ["red pear", "red apple"]
    assert [piece.text for piece in store.pieces(source="/d.md")] == ["red plum"]


def test_ties_are_newest_first_and_equal_texts_are_found_once(store):
    count = 300  # more than the candidates of a list
    store.add([note("green tea", day, conversation=str(day)) for day in range(count)])
    store.add([note(f"green tea {day}", day, conversation="x") for day in range(3)])
    for mode in ("hybrid", "bm25", "vector"):
        hits = store.search("green tea", limit=4, mode=mode)
        assert [(hit.piece.text, (hit.piece.date - DAY).days) for hit in hits[:1]] == [("green tea", count - 1)]
        assert len({hit.piece.text for hit in hits}) == len(hits)
    hits = store.search("tea", exclude=range(1, count + 1), mode="bm25")
    assert texts(hits) == ["green tea 2", "green tea 1", "green tea 0"]


def test_without_an_embedder_words_are_searched_and_the_memory_says_so(open_store, bag):
    store = open_store()
    store.add([note("the cat sleeps"), note("dogs bark")])
    assert "words alone (BM25)" in store.notice
    assert texts(store.search("cats")) == ["the cat sleeps"]
    assert open_store(bag).notice == "2 memories without vectors: python -m chat.memory reembed"
    with pytest.raises(BareloopError, match="no embedding model"):
        store.search("cats", mode="vector")
    with pytest.raises(BareloopError, match="no embedding model"):
        store.reembed()


def test_missing_vectors_are_computed_later(open_store, bag):
    open_store().add([note(f"fact {number}") for number in range(100)])
    store = open_store(bag)
    assert store.search("fact 7", mode="hybrid")[0].vector_rank is None
    batches = []
    assert store.reembed(batches.append) == sum(batches) == bag.texts == 100
    assert (store.notice, store.missing()) == ("", 0)
    assert store.search("fact 7", mode="vector")[0].piece.text == "fact 7"
    assert store.reembed() == 0


def test_another_embedder_serves_after_an_interrupted_and_continued_computation(store, open_store, path):
    store.add([note(f"fact {number}") for number in range(200)])
    other = Bag("other", 48)
    new = open_store(other)
    assert "vectors are of bag, not of other" in new.notice
    assert texts(new.search("fact 7"))[0] == "fact 7"
    assert new.add([note("added meanwhile")]) == [201]
    with pytest.raises(BareloopError, match="not of other"):
        new.search("fact 7", mode="vector")

    other.fails_after = 100
    with pytest.raises(KeyboardInterrupt):
        new.reembed()
    assert texts(store.search("fact 7", mode="vector"))[0] == "fact 7"  # the old ones still serve
    before, other.fails_after = other.texts, None
    assert new.reembed() == 201 - 64
    assert other.texts - before == 201 - 64

    assert new.notice == ""
    assert texts(new.search("fact 7", mode="vector"))[0] == "fact 7"
    assert texts(new.search("added meanwhile", mode="vector"))[0] == "added meanwhile"
    assert "vectors are of other, not of bag" in store.notice
    assert texts(store.search("fact 7"))[0] == "fact 7"
    assert store.add([note("by the old one")]) == [202]
    assert (new.missing(), new.reembed()) == (1, 1)
    tables = sqlite3.connect(path).execute("SELECT name FROM sqlite_master WHERE name LIKE 'vectors_%'").fetchall()
    assert tables == [("vectors_2",)]


def test_a_vector_that_is_no_vector_is_refused(open_store, bag):
    store = open_store(bag)
    for wrong in (np.zeros((1, 5)), np.full((1, 32), np.nan), np.zeros((2, 32))):
        bag.embed = lambda texts, kind, wrong=wrong: wrong
        with pytest.raises(BareloopError, match="bag returned vectors"):
            store.add([note("a")])
    assert store.count() == 0


def test_threads_share_a_memory(store):
    def work(name: str) -> None:
        for number in range(20):
            store.add([note(f"{name} {number}")])
            found.append(texts(store.search(f"{name} {number}", limit=1)) == [f"{name} {number}"])

    found: list[bool] = []
    threads = [threading.Thread(target=work, args=(name,)) for name in ("alpha", "beta", "gamma")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 60
    assert all(found)
    assert store.count() == 60


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda store: store.add([NewPiece("x", "thing", "me")]), "kind 'thing': use turn, note, document"),
        (lambda store: store.add([note(" \n")]), "a memory needs a text"),
        (lambda store: store.search("x", limit=0), "limit 0: use 1 or more"),
        (lambda store: store.search("x", mode="magic"), "mode 'magic': use hybrid, bm25, vector"),
    ],
)
def test_a_wrong_call_is_one_line(store, call, line):
    with pytest.raises(UsageError, match=line):
        call(store)


def test_other_files_are_refused_and_stay_as_they_are(path, tmp_path):
    path.parent.mkdir()
    path.write_bytes(b"not a database, but a text that is long enough" * 100)
    with pytest.raises(BareloopError, match="is not a memory"):
        MemoryStore.open(path)
    assert path.read_bytes().startswith(b"not a database")
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine(x)")
    with pytest.raises(BareloopError, match="another program"):
        MemoryStore.open(other)
    MemoryStore.open(tmp_path / "new.db").close()
    with sqlite3.connect(tmp_path / "new.db") as connection:
        connection.execute("PRAGMA user_version=7")
    with pytest.raises(BareloopError, match="version 7; this program reads version 1"):
        MemoryStore.open(tmp_path / "new.db")
    with pytest.raises(BareloopError, match="cannot open the memory"):
        MemoryStore.open(tmp_path)


def test_a_memory_is_found_by_its_name(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert memory_path("work") == tmp_path / "bareloop" / "memory" / "work.db"
    assert memory_path("a/b") == Path("a/b")
    assert memory_path("mine.db") == Path("mine.db")


def test_a_number_that_sqlite_does_not_have_is_no_piece(tmp_path):
    with MemoryStore.open(tmp_path / "memory.db") as store:
        store.add([NewPiece("Rex", "note", "note")])
        assert store.get([10**20, 0, -1]) == []
        assert store.forget([10**20]) == 0
        assert store.count() == 1


def test_a_purge_that_fails_is_said_and_done_later(tmp_path, monkeypatch):
    path = tmp_path / "memory.db"
    with MemoryStore.open(path) as store:
        (number,) = store.add([NewPiece("The dog is called Rexinald.", "note", "note")])

        def full(_):
            raise BareloopError("memory: database or disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(type(store.database), "purge", full)
            assert store.forget([number]) == 1
            assert store.unpurged
        assert store.count() == 0
    with MemoryStore.open(path) as store:
        assert store.unpurged == ""
    assert b"Rexinald" not in path.read_bytes()
