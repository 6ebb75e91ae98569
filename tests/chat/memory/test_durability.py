"""The file of a memory: forgotten texts are nowhere in its bytes, and no kill or second program damages it."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from chat.memory.store import MemoryStore, NewPiece
from engine.runtime.errors import BareloopError
from tests.chat.memory.conftest import Bag

ROOT = Path(__file__).parents[3]
ADD = """
import sys
from pathlib import Path
from chat.memory.store import MemoryStore, NewPiece
from tests.chat.memory.conftest import Bag

name, start, count, size = sys.argv[2], *map(int, sys.argv[3:])
store = MemoryStore.open(Path(sys.argv[1]), Bag())
print("ready", flush=True)
sys.stdin.readline()
for batch in range(start, start + count):
    ids = store.add([NewPiece(f"{name} word{batch} number{n}", "note", name) for n in range(size)])
    print(*ids, flush=True)
"""


def start(path: Path, *arguments: str | int) -> subprocess.Popen[str]:
    """A program that opens the memory, waits for a line, and adds batches of pieces, whose ids it prints."""
    return subprocess.Popen(
        [sys.executable, "-c", ADD, str(path), *map(str, arguments)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()


def check_consistent(path: Path) -> None:
    """Every piece has its words and its vector, and there are no others."""
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO words(words) VALUES ('integrity-check')")
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        pieces = connection.execute("SELECT id FROM pieces ORDER BY id").fetchall()
        assert connection.execute("SELECT piece FROM vectors_1 ORDER BY piece").fetchall() == pieces
        assert connection.execute("SELECT rowid FROM words ORDER BY rowid").fetchall() == pieces
    connection.close()


def content(path: Path) -> bytes:
    """The bytes of the file, its log and everything else beside it."""
    return b"".join(file.read_bytes() for file in sorted(path.parent.iterdir()))


def indexed(path: Path) -> set[str]:
    """The words of the index, which its pages hold without their common beginnings."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab(main, words, row)")
    words = {word for (word,) in connection.execute("SELECT term FROM vocabulary")}
    connection.close()
    return words


def secrets(count: int) -> list[NewPiece]:
    draw = random.Random(5)
    return [
        NewPiece(
            " ".join("".join(draw.choices("bcdfghjklmnp", k=9)) for _ in range(12)),
            "document", f"/home/secret{number}/file{number}.md", f"place{number}x", f"talk{number}y",
        )
        for number in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("way", ["forget", "source", "clear"])
def test_a_forgotten_text_is_nowhere_in_the_bytes(store, path, way):
    kept = [] if way == "clear" else [NewPiece(f"kept text {number}", "note", "me") for number in range(150)]
    pieces = secrets(15)
    ids = []
    for number, piece in enumerate(pieces):  # many small segments of the index
        ids += store.add([piece])
        store.add(kept[number * 10 : number * 10 + 10])
    with store.database.writing():
        for piece in pieces:
            store.set_source(piece.source, "hash")
    traces = [vector.tobytes() for vector in store.embedder.embed([piece.text for piece in pieces])]
    traces += [
        trace
        for piece in pieces
        for trace in (piece.digest, *(text.encode() for text in (piece.source, piece.place, piece.conversation)))
    ]
    words = {word for piece in pieces for word in piece.text.split()}
    traces += [word.encode() for word in words]
    before = content(path)
    assert all(trace in before for trace in traces)
    assert len(indexed(path) & words) > 170

    reader = MemoryStore.open(path)  # another program that has the file open
    reader.search("kept")
    if way == "forget":
        assert store.forget([*ids, ids[0], 99_999]) == 15
    elif way == "source":
        assert [store.forget_source(piece.source) for piece in pieces] == [1] * 15
    else:
        assert store.clear() == 15

    after = content(path)
    assert [trace for trace in traces if trace in after] == []
    assert not indexed(path) & words
    assert store.count() == len(kept)
    check_consistent(path)
    if kept:
        assert reader.search("kept text 7")[0].piece.text == "kept text 7"
    reader.close()


def test_old_vectors_are_nowhere_in_the_bytes_after_new_ones_are_computed(store, path, open_store):
    store.add([NewPiece("a text", "note", "me")])
    (vector,) = store.embedder.embed(["a text"])
    assert vector.tobytes() in content(path)
    open_store(Bag("other")).reembed()
    assert vector.tobytes() not in content(path)


def test_what_a_killed_program_has_deleted_is_removed_by_the_next_one(store, path, monkeypatch):
    (piece,) = secrets(1)
    (number,) = store.add([piece])
    word = piece.text.split()[0].encode()

    def killed() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.database, "purge", killed)
    with pytest.raises(KeyboardInterrupt):
        store.forget([number])
    store.database.close()
    assert word in content(path)
    MemoryStore.open(path).close()
    assert word not in content(path)


def test_kill_9_while_adding_leaves_what_was_acknowledged_and_nothing_in_part(path):
    acknowledged: list[int] = []
    for run in range(3):
        process = start(path, f"run{run}", 0, 10_000, 7)
        go(process)
        for _ in range(random.Random(run).randrange(5, 25)):
            acknowledged += map(int, process.stdout.readline().split())
        process.send_signal(signal.SIGKILL)
        for line in process.communicate()[0].splitlines():  # what it had printed by then
            acknowledged += map(int, line.split())
        check_consistent(path)
        with MemoryStore.open(path, Bag()) as store:
            assert {piece.id for piece in store.get(acknowledged)} == set(acknowledged)
            assert store.count() % 7 == 0
            assert store.notice == ""
            assert store.search(f"run{run} word3 number2", limit=1)[0].piece.text == f"run{run} word3 number2"


def test_two_programs_on_one_memory_lose_nothing(store, path):
    processes = [start(path, name, 0, 60, 1) for name in ("one", "two")]
    for process in processes:
        go(process)
    mine = [store.add([NewPiece(f"mine {number}", "note", "me")])[0] for number in range(60)]
    forgotten = mine[::10]
    assert store.forget(forgotten) == 6
    for process in processes:
        assert process.wait() == 0
        process.stdout.close()
        process.stdin.close()
    assert store.count() == 180 - 6
    assert {piece.source for piece in store.pieces()} == {"one", "two", "me"}
    check_consistent(path)
    for text in ("one word59 number0", "two word3 number0", "mine 41"):
        for mode in ("bm25", "vector"):
            assert store.search(text, limit=1, mode=mode)[0].piece.text == text


def test_a_failed_write_changes_nothing_and_is_one_line(store, path):
    store.add([NewPiece("before", "note", "me")])
    pages = store.database.one("PRAGMA page_count")
    store.database.run(f"PRAGMA max_page_count={pages}")  # a full disk
    with pytest.raises(BareloopError, match="full") as refused:
        store.add([NewPiece(f"text {number} " * 500, "note", "me") for number in range(50)])
    assert "\n" not in str(refused.value)
    assert [piece.text for piece in store.pieces()] == ["before"]
    check_consistent(path)


def test_a_memory_that_is_locked_for_too_long_is_one_line(store, path, monkeypatch):
    monkeypatch.setattr("chat.memory.database.BUSY_TIMEOUT", 0.05)
    with store.database.writing(), pytest.raises(BareloopError, match="database is locked"):
        MemoryStore.open(path)
    MemoryStore.open(path).close()
