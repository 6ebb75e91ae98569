"""python -m chat.memory: add, list, search, forget and reembed, with errors in one line."""

from __future__ import annotations

import io
import sys

import pytest

from chat.memory import __main__ as program
from chat.memory import embedder
from chat.memory.store import MemoryStore, NewPiece, memory_path
from engine.cli.parser import run
from tests.chat.memory.conftest import Bag


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the program: call("list") -> exit code, stdout, stderr."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(embedder, "default_embedder", lambda: "bag")
    monkeypatch.setattr(embedder, "load_embedder", lambda name, device: Bag(name))

    def caller(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run(program.parser(), program.main, [str(argument) for argument in arguments])
        return ended.value.code, *capsys.readouterr()

    return caller


@pytest.fixture
def files(tmp_path):
    (tmp_path / "cats.md").write_text("# Cats\nCats sleep all day.")
    (tmp_path / "dogs.txt").write_text("Dogs bark at night.")
    return tmp_path / "cats.md", tmp_path / "dogs.txt"


def test_documents_are_added_listed_found_and_forgotten(call, files):
    code, out, err = call("add", *files)
    assert (code, out.splitlines()[0].split(";")[0]) == (0, "2 files added with 2 new pieces")
    assert "add: 2/2" in err
    assert "2 unchanged" in call("add", *files)[1]
    code, out, _ = call("list", "--limit", 1)
    assert [line.split(":")[0] for line in out.splitlines()[1:3]] == [f"document {file}" for file in files]
    assert len(out.splitlines()) == 4
    code, out, err = call("search", "who", "sleeps?", "--limit", "1")
    assert (code, err) == (0, "")
    assert f"document {files[0]} · Cats · words 1, meaning" in out
    assert "Cats sleep all day." in out
    assert call("forget", "--source", files[0])[1] == "forgot 1 memory; 1 is left\n"
    assert call("forget", "2", "77")[1] == "forgot 1 memory; 0 are left\n"


def test_another_memory_and_another_model(call, files, tmp_path):
    memory = ("--memory", "work")
    code, _, err = call("add", *files, *memory, "--memory-model", "none")
    assert code == 0
    assert "words alone (BM25)" in err
    assert "without vectors" in call("search", "cats", *memory)[2]
    assert call("reembed", *memory)[1] == "computed 2 vectors\n"
    assert call("search", "cats", *memory)[2] == ""
    assert "of bag, not of other" in call("search", "cats", *memory, "--memory-model", "other")[2]
    assert call("forget", "--all", "--yes", *memory)[1] == "forgot 2 memories; 0 are left\n"
    assert (tmp_path / "data" / "bareloop" / "memory" / "work.db").exists()


def test_a_file_that_cannot_be_added_is_told_and_the_others_are_added(call, files, tmp_path):
    code, out, err = call("add", tmp_path / "gone.md", files[1])
    assert code == 1
    assert f"skipped {tmp_path / 'gone.md'}: No such file or directory" in err
    assert "not added: 1 of the files that were named" in err
    assert "1 file added with 1 new piece, 1 skipped" in out


def note(count: int) -> None:
    with MemoryStore.open(memory_path()) as store:
        store.add([NewPiece(f"note {number}", "note", "note") for number in range(count)])


@pytest.mark.parametrize("what", [("--source", "note"), ("--all",)])
def test_several_memories_are_only_forgotten_if_the_user_agrees(call, monkeypatch, what):
    note(3)
    code, out, err = call("forget", *what)
    assert (code, out) == (1, "") and "forgets 3 memories" in err and "add --yes" in err and len(err.splitlines()) == 1
    for answer, left in (("no\n", 3), ("", 3), ("y\n", 0)):
        terminal = io.StringIO(answer)
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        code, out, err = call("forget", *what)
        assert err.startswith("forget 3 memories") and "? [y/N] " in err
        assert (code, out) == ((0, "forgot 3 memories; 0 are left\n") if not left else (1, ""))
        with MemoryStore.open(memory_path()) as store:
            assert store.count() == left


def test_one_memory_or_those_that_are_named_are_forgotten_without_a_question(call):
    note(1)
    assert call("forget", "--source", "note")[:2] == (0, "forgot 1 memory; 0 are left\n")
    note(3)
    assert call("forget", 2, 3, 4)[:2] == (0, "forgot 3 memories; 0 are left\n")
    note(2)
    assert call("forget", "--source", "note", "--yes")[:2] == (0, "forgot 2 memories; 0 are left\n")


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["list"], 1, "there is no memory"),
        (["add"], 2, "required: FILE"),
        (["forget"], 2, "forget needs either IDs, or --source, or --all"),
        (["forget", "1", "--all"], 2, "forget needs either"),
        (["forget", "x"], 2, "invalid int value"),
        (["search", "cats", "--limit", "0"], 2, "--limit 0: use 1 or more"),
        (["reembed", "--memory-model", "none"], 1, "no embedding model"),
        ([], 2, "required: COMMAND"),
    ],
)
def test_errors_are_one_line(call, files, arguments, code, line):
    if code != 1 or arguments[0] != "list":
        call("add", files[0])
    result, _, err = call(*arguments)
    assert result == code
    assert line in err
    assert len(err.splitlines()) == 1
