"""Texts are cut into pieces that fit, overlap, and together have everything."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from chat.memory.documents.splitting import OVERLAP, SIZE, count_words, slices, split

LETTERS = st.text(st.sampled_from("ab .!?\n。北😀-"), max_size=400)
LONG = st.lists(
    st.sampled_from(["word ", "Sentence end. ", "\n\n", "longer" * 20, "北京" * 9, ". ", "\n", "end!\n\n"]),
    max_size=150,
).map("".join)


def tokens(text: str) -> int:
    """Another count: a token for every two characters that are not space."""
    return -(-len("".join(text.split())) // 2)


@given(st.one_of(LETTERS, LONG), st.sampled_from([(20, 5), (20, 0), (7, 3), (200, 40), (8, 9)]))
@settings(max_examples=150, deadline=None)
def test_pieces_fit_and_overlap_and_nothing_is_lost(text, limits):
    size, overlap = limits
    covered, previous = 0, -1
    for begin, end in slices(text, tokens, size, overlap):
        piece = text[begin:end]
        assert piece == piece.strip() != ""
        assert tokens(piece) <= size + overlap  # which is not counted, but estimated by its length
        assert text[covered:begin].strip() == ""  # nothing between two pieces
        assert tokens(text[begin:covered]) <= 2 * overlap
        assert begin > previous
        assert end > covered
        covered, previous = end, begin
    assert text[covered:].strip() == ""


def test_a_short_text_is_one_piece_and_an_empty_one_is_none():
    assert split(" One. Two.\n\nThree. ") == ["One. Two.\n\nThree."]
    assert split(" \n\n ") == []


def test_cuts_are_at_paragraphs_then_at_sentences():
    paragraphs = [" ".join(f"P{number}s{s} has exactly six words here." for s in range(14)) for number in range(3)]
    pieces = split("\n\n".join(paragraphs))
    assert len(pieces) == 3
    for number, piece in enumerate(pieces):
        assert piece.endswith(paragraphs[number])
        overlap = piece.removesuffix(paragraphs[number])
        assert bool(overlap) == (number > 0)
        assert count_words(overlap) <= OVERLAP
        assert overlap == "" or overlap.startswith(f"P{number - 1}s")
    (text,) = (" ".join(f"Sentence {number} of one long paragraph." for number in range(100)),)
    for piece in split(text):
        assert piece.startswith("Sentence ")
        assert piece.endswith("paragraph.")
        assert count_words(piece) <= SIZE
    assert all(count_words(piece) > SIZE - 20 for piece in split(text)[:-1])


def test_long_words_and_scripts_without_spaces_are_cut_too():
    for text in ("x" * 10_000, "我住在北京。" * 300, "字" * 1000, "a,b;" * 3000):
        pieces = split(text)
        assert 3 <= len(pieces) <= 40
        assert all(piece in text for piece in pieces)
        assert max(map(len, pieces)) <= 1300


def test_splitting_takes_linear_time():
    calls = []

    def count(text: str) -> int:
        calls.append(len(text))
        return count_words(text)

    split("A sentence of some words. " * 20_000, count)
    assert sum(calls) < 3_000_000
