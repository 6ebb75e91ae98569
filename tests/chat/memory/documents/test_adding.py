"""Adding documents: only what has changed, in one step, without links, and going on after an interruption."""

from __future__ import annotations

import pytest

from chat.memory.documents.adding import add_files, find_files
from chat.memory.store import BATCH


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "docs"
    (folder / "sub" / ".git").mkdir(parents=True)
    (folder / "a.md").write_text("# Cats\nCats sleep.\n# Dogs\nDogs bark.")
    (folder / "sub" / "b.txt").write_text("Birds sing.")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "sub" / ".git" / "config.txt").write_text("hidden")
    (folder / "sub" / "picture.png").write_bytes(b"\x89PNG\0\xff")
    (folder / "link.txt").symlink_to(folder / "a.md")
    (folder / "loop").symlink_to(folder)
    return folder


def numbered(words: range) -> str:
    return "\n\n".join(f"Paragraph {number} " + f"about w{number} " * 70 for number in words)


def test_a_folder_is_added_with_sources_and_places_and_what_is_skipped_is_told(store, folder):
    states = []
    added = add_files(store, [folder, folder / "gone.txt"], lambda *state: states.append(state))
    assert str(added) == "2 files added with 3 new pieces, 3 skipped"
    assert added.skipped == [
        (str(folder / "link.txt"), "a link, which is not followed"),
        (str(folder / "sub" / "picture.png"), "not a text in UTF-8"),
        (str(folder / "gone.txt"), "No such file or directory"),
    ]
    assert [(source.path, source.pieces) for source in store.sources()] == [
        (str(folder / "a.md"), 2),
        (str(folder / "sub" / "b.txt"), 1),
    ]
    (hit,) = store.search("barking dogs", limit=1)
    assert (hit.piece.kind, hit.piece.place, hit.piece.text) == ("document", "Dogs", "# Dogs\n\nDogs bark.")
    assert states[0] == (0, 5, "a.md")
    assert states[-1] == (5, 5, "")


def test_links_are_not_followed_even_if_they_are_named(store, folder):
    assert [problem for _, problem in find_files([folder / "link.txt", folder / "loop"])] == [
        "a link, which is not followed"
    ] * 2
    assert "loop" not in {path.name for path, _ in find_files([folder])}


def test_an_unchanged_file_is_not_read_again_and_a_changed_one_is_replaced(store, folder, bag, path):
    add_files(store, [folder])
    before = {piece.text: piece.id for piece in store.pieces()}
    embedded = bag.texts
    assert (add_files(store, [folder]).files, bag.texts) == (0, embedded)

    (folder / "a.md").write_text("# Cats\nCats sleep.\n# Fish\nFish swim.")
    added = add_files(store, [folder])
    assert (added.files, added.unchanged, added.pieces, bag.texts) == (1, 1, 1, embedded + 1)
    after = {piece.text: piece.id for piece in store.pieces(source=str(folder / "a.md"))}
    assert set(after) == {"# Cats\n\nCats sleep.", "# Fish\n\nFish swim."}
    assert after["# Cats\n\nCats sleep."] == before["# Cats\n\nCats sleep."]
    assert b"bark" not in b"".join(file.read_bytes() for file in path.parent.iterdir())

    (folder / "a.md").write_text("")
    add_files(store, [folder])
    assert [(source.pieces, bool(source.hash)) for source in store.sources()] == [(0, True), (1, True)]


def test_a_forgotten_document_can_be_added_again_and_a_forgotten_piece_stays_forgotten(store, folder):
    add_files(store, [folder])
    (hit,) = store.search("dogs", limit=1, mode="bm25")
    store.forget([hit.piece.id])
    assert add_files(store, [folder]).unchanged == 2
    assert store.search("dogs", mode="bm25") == []
    assert store.forget_source(str(folder / "a.md")) == 1
    assert add_files(store, [folder]).pieces == 2
    assert len(store.search("dogs", mode="bm25")) == 1


def test_an_interrupted_file_goes_on_where_it_was(store, folder, bag):
    (folder / "a.md").write_text(numbered(range(BATCH + 100)))
    bag.fails_after = BATCH + 50
    with pytest.raises(KeyboardInterrupt):
        add_files(store, [folder / "a.md"])
    (source,) = store.sources()
    assert (source.hash, source.pieces) == ("", BATCH)
    bag.fails_after, bag.texts = None, 0
    add_files(store, [folder / "a.md"])
    assert bag.texts == 100
    assert [source.pieces for source in store.sources()] == [BATCH + 100]


def test_an_interrupted_replacement_leaves_the_old_file_whole(store, folder, bag):
    (folder / "a.md").write_text(numbered(range(20)))
    add_files(store, [folder / "a.md"])
    before = store.pieces()
    (folder / "a.md").write_text(numbered(range(10, 300)))
    bag.fails_after = bag.texts + 270
    with pytest.raises(KeyboardInterrupt):
        add_files(store, [folder / "a.md"])
    assert store.pieces() == before
    bag.fails_after = None
    add_files(store, [folder / "a.md"])
    text = " ".join(piece.text for piece in store.pieces())
    assert [f"Paragraph {number} " in text for number in (9, 10, 299, 300)] == [False, True, True, False]


def test_the_same_text_in_two_files_belongs_to_both(store, folder):
    (folder / "sub" / "b.txt").write_text("# Dogs\n\nDogs bark.")
    add_files(store, [folder])
    assert [hit.piece.text for hit in store.search("dogs bark", mode="bm25")] == ["# Dogs\n\nDogs bark."]
    store.forget_source(str(folder / "a.md"))
    assert [hit.piece.source for hit in store.search("dogs bark")] == [str(folder / "sub" / "b.txt")]


def test_a_tokenizer_can_count(store, folder):
    (folder / "a.md").write_text("word " * 100)
    add_files(store, [folder / "a.md"], count=lambda text: 10 * len(text.split()))
    assert store.count() >= 5
