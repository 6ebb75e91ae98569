"""Nearest vectors: numpy and sqlite-vec find what a float64 loop finds, also while another program changes the file."""

from __future__ import annotations

import math
import random

import pytest

from chat.memory.store import MemoryStore, NewPiece
from chat.memory.vectors import VectorSearch
from engine.runtime.errors import BareloopError

WORDS = [f"w{number}" for number in range(40)]


def pieces(count: int, seed: int) -> list[NewPiece]:
    """Random texts; every fifth has the words of another, in another order, so that their vectors are equal."""
    draw = random.Random(seed)
    result = list[NewPiece]()
    for number in range(count):
        words = draw.sample(WORDS, 6)
        if number % 5 == 4:
            words = result[draw.randrange(number)].text.split()[::-1]
        result.append(
            NewPiece(" ".join(words), draw.choice(["note", "turn"]), f"s{seed}", conversation=str(number % 3))
        )
    return result


def expected(store: MemoryStore, query: str, **only) -> list[int]:
    """The nearest pieces by a plain float64 loop over the texts."""
    (wanted,) = store.embedder.embed([query])
    rows = []
    for piece in store.pieces(kinds=only.get("kinds")):
        if piece.id in only.get("exclude", ()) or only.get("conversation", piece.conversation) != piece.conversation:
            continue
        (vector,) = store.embedder.embed([piece.text])
        cosine = math.fsum(float(a) * float(b) for a, b in zip(wanted, vector, strict=True))
        rows.append((-round(cosine, 12), -piece.date.timestamp(), -piece.id, piece.text))
    order, seen = [], set()
    for *_, number, text in sorted(rows):
        if text not in seen:
            order.append(-number)
        seen.add(text)
    return order


def check(*stores: MemoryStore) -> None:
    """All of them find what the loop finds."""
    for seed, only in enumerate(({}, {"kinds": ["turn"]}, {"exclude": frozenset(range(1, 90))}, {"conversation": "1"})):
        query = " ".join(random.Random(seed).sample(WORDS, 5))
        wanted = expected(stores[0], query, **only)[:20]
        results = [store.search(query, limit=20, mode="vector", **only) for store in stores]
        for hits in results:
            assert [hit.piece.id for hit in hits] == wanted
            assert hits == results[0]  # to the last bit of the cosine


@pytest.mark.parametrize("backend", ["numpy", "sqlite-vec"])
def test_the_nearest_are_those_of_a_float64_loop(open_store, bag, backend, request):
    if backend == "sqlite-vec":
        request.getfixturevalue("sqlite_vec")
    store = open_store(bag, backend)
    store.add(pieces(200, 0))
    check(store)


def test_numpy_and_sqlite_vec_find_the_same_while_the_other_one_adds_and_forgets(open_store, bag, sqlite_vec):
    one, two = open_store(bag, "numpy"), open_store(bag, "sqlite-vec")
    one.add(pieces(120, 1))
    check(one, two)
    two.add(pieces(80, 2))
    check(one, two)
    two.forget([1, 50, 200])
    one.add(pieces(10, 3))
    check(one, two)
    two.clear()
    assert one.search("w1 w2", mode="vector") == []
    two.add(pieces(30, 4))
    check(one, two)


def test_auto_reads_the_file_beyond_the_limit(open_store, bag, sqlite_vec, monkeypatch):
    store = open_store(bag)
    store.add(pieces(50, 0))
    used = []
    for name in ("_with_numpy", "_with_sqlite_vec"):
        original = getattr(VectorSearch, name)
        monkeypatch.setattr(
            VectorSearch, name, lambda *a, name=name, original=original: (used.append(name), original(*a))[1]
        )
    check(store)
    monkeypatch.setattr("chat.memory.vectors.MEMORY", 0)
    check(store)
    assert used == ["_with_numpy"] * 4 + ["_with_sqlite_vec"] * 4


def test_without_sqlite_vec_numpy_serves_and_asking_for_it_is_one_line(open_store, bag, monkeypatch):
    monkeypatch.setattr("chat.memory.vectors.load_sqlite_vec", lambda connection: False)
    store = open_store(bag)
    store.add(pieces(20, 0))
    check(store)
    with pytest.raises(BareloopError, match="bareloop\\[memory\\]"):
        open_store(bag, "sqlite-vec")
