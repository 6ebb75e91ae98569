"""Hybrid search: any text is a query, and the order is that of the scores of words and meaning."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat.memory.pieces import Filter
from chat.memory.search import WORDS, bm25, fuse, match_words, rarest
from chat.memory.store import MemoryStore, NewPiece
from tests.chat.memory.conftest import Bag


def add(store: MemoryStore, *texts: str) -> list[int]:
    return store.add([NewPiece(text, "note", "me") for text in texts])


def found(store: MemoryStore, query: str, mode: str = "bm25") -> list[str]:
    return [hit.piece.text for hit in store.search(query, mode=mode)]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    with MemoryStore.open(tmp_path_factory.mktemp("memory") / "m.db", Bag()) as store:
        add(store, "one AND two", 'NEAR("x" y)', "naïve café", "我住在北京附近", "text: a-b_c 3.14", "İstanbul ß")
        yield store


SYNTAX = st.sampled_from(['"', "'", "AND", "OR", "NOT", "NEAR(", ")", "*", "^", "+", ":", "text:", "-", "{", "\0", "%"])
SCRIPTS = st.sampled_from(["北京", "東京に", "مرحبا", "हिन्दी", "😀", "e\u0301", "İ", "ß", "\ud83d", "\u200b", "½"])


@given(st.lists(st.one_of(SYNTAX, SCRIPTS, st.text(max_size=8)), max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_query(filled, parts):
    for query in (" ".join(parts), "".join(parts)):
        for mode in ("bm25", "hybrid"):
            assert len(filled.search(query, mode=mode)) <= 5


@pytest.mark.parametrize("query", ["", " \n\t", "...?!", '"', "***", "\0", "—–"])
def test_a_query_without_words_finds_nothing(filled, query):
    for mode in ("bm25", "vector", "hybrid"):
        assert filled.search(query, mode=mode) == []


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ('say "and"', "one AND two"),
        ("near", 'NEAR("x" y)'),
        ("NAIVE", "naïve café"),
        ("cafe\u0301s", "naïve café"),  # its accent is a character of its own
        ("北京", "我住在北京附近"),
        ("他去过北京吗？", "我住在北京附近"),
        ("b", "text: a-b_c 3.14"),
        ("3.14", "text: a-b_c 3.14"),
    ],
)
def test_words_are_found_in_other_forms_and_scripts(filled, query, text):
    assert found(filled, query)[:1] == [text]


def test_a_very_long_query_keeps_its_first_and_last_words(filled):
    middle = " ".join(f"word{number}" for number in range(5000))
    assert found(filled, f"naïve {middle} 3") == ["naïve café", "text: a-b_c 3.14"]
    assert match_words("x " * 1000) == ['"x"']


def test_a_large_memory_is_searched_for_the_rarest_words(store, monkeypatch):
    add(store, *(f"the old{' red' * (number % 5 == 0)} thing number{number}" for number in range(50)))
    query = "the old red number7 unknown"
    everything = found(store, query)
    monkeypatch.setattr("chat.memory.search.MAX_FOUND", 20)
    assert rarest(store.database, match_words(query)) == ['"number7"', '"red"']
    assert found(store, query)[0] == everything[0] == "the old thing number7"
    assert rarest(store.database, match_words("the old")) == ['"old"']  # found in too many, but there is no other
    assert rarest(store.database, match_words("unknown")) == []


def test_the_score_is_the_weighted_mean_of_the_share_of_the_best_bm25_and_the_cosine(store):
    add(store, *(f"{'cat ' * (number % 3)}{'sleeps ' * (number % 4)}n{number}" for number in range(60)))
    lists = {mode: found(store, "cat sleeps n7", mode) for mode in ("bm25", "vector")}
    hits = store.search("cat sleeps n7", limit=60)
    scores = bm25(store.database, "cat sleeps n7", 60, Filter())
    (query,) = store.embedder.embed(["cat sleeps n7"]).astype(float)
    for hit in hits:
        cosine = float(store.embedder.embed([hit.piece.text])[0].astype(float) @ query)
        assert hit.similarity == pytest.approx(cosine, abs=1e-6)  # float32
        share = scores.get(hit.piece.id, 0.0) / max(scores.values())
        assert hit.score == pytest.approx(WORDS * share + (1 - WORDS) * hit.similarity, abs=1e-12)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    by_rank = [
        sorted((hit for hit in hits if rank(hit)), key=rank)
        for rank in (lambda h: h.bm25_rank, lambda h: h.vector_rank)
    ]
    for mode, ranked in zip(("bm25", "vector"), by_rank, strict=True):
        assert [hit.piece.text for hit in ranked[:5]] == lists[mode]


def test_ties_of_the_fusion_are_newest_first():
    ranked = fuse({1: 4.0, 2: 4.0, 3: 1.0}, {1: 0.5, 2: 0.5, 4: 0.5}, {1: 5, 2: 6, 3: 9, 4: 9})
    assert [piece for piece, _ in ranked] == [2, 1, 4, 3]
    assert ranked[0][1] == WORDS + (1 - WORDS) / 2


def test_what_is_found_by_words_alone_has_its_cosine_too(store, monkeypatch):
    monkeypatch.setattr("chat.memory.search.DEPTH", 4)
    monkeypatch.setattr("chat.memory.vectors.MARGIN", 0)
    (zebra, *_) = add(store, "zebra with black stripes", *(f"cat cat cat {number}" for number in range(20)))
    cosines: list[dict[int, float]] = []

    def noted(by_words, found, dates):
        cosines.append(found)
        return fuse(by_words, found, dates)

    monkeypatch.setattr("chat.memory.search.fuse", noted)
    store.search("cat cat zebra", limit=1)
    assert len(cosines[0]) > 4 and zebra in cosines[0]
