"""Saved conversations: a round trip through the file, and one-line errors for other files."""

from __future__ import annotations

import json
import stat

import pytest

from chat import store
from chat.events import Settings
from engine.runtime.errors import BareloopError

TURNS = [
    [
        {"role": "user", "content": "Hi, I'm Zoé."},
        {"role": "assistant", "content": "Hello!", "finish_reason": "length"},
    ],
    [{"role": "user", "content": "And now?"}],
]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))


def test_save_then_load_is_the_identity_and_the_file_is_private(tmp_path):
    settings = Settings(system="Be kind.", strategy="truncate", sampling={"seed": 3})
    conversation = store.Conversation(TURNS, settings, 1, "Zoé said hello.", "demo", "ab", "cd", "2026-11-22T10:00:00")
    path = tmp_path / "deep" / "talk.json"
    store.save(conversation, path)
    assert store.load(path) == conversation
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_plain_list_of_messages_loads(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps([{"role": "system", "content": "Be brief."}, *(m for turn in TURNS for m in turn)]))
    assert store.load(path) == store.Conversation(TURNS, Settings(system="Be brief."))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "is not JSON"),
        ('"hello"', "neither a saved conversation"),
        ('{"format": "other"}', "neither a saved conversation"),
        ('{"format": "bareloop conversation", "version": 9}', "has version 9; this program reads version 1"),
        ('{"format": "bareloop conversation", "version": 1, "messages": []}', "is damaged"),
        ('[{"role": "assistant", "content": "Hi"}]', "message 1: unexpected role assistant"),
        ('[{"role": "user", "content": 3}]', "message 1: needs a role"),
        ('[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]', "message 2: unexpected role user"),
    ],
)
def test_a_file_that_is_not_a_conversation_is_refused_in_one_line(tmp_path, content, line):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(BareloopError) as refused:
        store.load(path)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)
    assert path.read_text() == content


def test_conversations_are_found_by_the_beginning_of_their_id(tmp_path):
    with pytest.raises(BareloopError, match="no conversation to resume"):
        store.latest()
    for name in ("2026-11-22-1", "2026-11-23-1", "2026-11-23-2"):
        store.save(store.Conversation(TURNS), store.folder() / f"{name}.json")
    assert store.latest().stem == "2026-11-23-2"
    assert store.find("2026-11-22").stem == "2026-11-22-1"
    with pytest.raises(BareloopError, match="2 conversations begin with '2026-11-23'"):
        store.find("2026-11-23")
    with pytest.raises(BareloopError, match="no file or conversation '1999'"):
        store.find("1999")
