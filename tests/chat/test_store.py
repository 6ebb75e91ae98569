"""Saved conversations: a round trip through the file, and one-line errors for other files."""

from __future__ import annotations

import json
import stat

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from chat import store
from chat.conversation.events import Settings
from engine.runtime.errors import BareloopError
from tests.chat.conversation.test_tree import content as all_turns
from tests.chat.conversation.test_tree import grow

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


@limits(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.integers(0, 40))
def test_any_tree_of_versions_survives_save_and_load(tmp_path, seed, steps):
    tree, path = grow(seed, steps), tmp_path / "talk.json"
    conversation = store.Conversation(
        [node.turn for node in tree.path], date="2026-11-22T10:00:00", title="Zoé", branches=tree.branches()
    )
    store.save(conversation, path)
    loaded = store.load(path)
    assert loaded == conversation
    assert all_turns(loaded.tree()) == all_turns(tree)


def test_a_file_of_an_earlier_version_has_no_title_and_no_branches(tmp_path):
    path = tmp_path / "talk.json"
    store.save(store.Conversation(TURNS, date="2026-11-22T10:00:00"), path)
    content = json.loads(path.read_text())
    del content["title"], content["branches"]
    path.write_text(json.dumps(content))
    assert store.load(path) == store.Conversation(TURNS, date="2026-11-22T10:00:00")


REPLIED = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"title": 5}, "its fields do not fit"),
        ({"branches": 5}, "its branches are not a list"),
        ({"branches": [5]}, "branch 1 needs numbers"),
        ({"branches": [{"after": 0, "place": True, "messages": REPLIED}]}, "branch 1 needs numbers"),
        ({"branches": [{"after": 0, "place": 0, "messages": []}]}, "branch 1 needs messages"),
        ({"branches": [{"after": 0, "place": 0, "messages": REPLIED[:1]}]}, "the last is a reply"),
        (
            {"branches": [{"after": 0, "place": 0, "messages": [{"role": "system"}]}]},
            "branch 1, message 1: needs a role",
        ),
        ({"branches": [{"after": 2, "place": 0, "messages": REPLIED}]}, "branch 1 is after turn 2 of 2"),
        ({"branches": [{"after": 0, "place": 2, "messages": REPLIED}]}, "branch 1 is version 2 of 2"),
        ({"settings": {"sampling": {"heat": 1}}}, "heat"),
        ({"start": True}, "its fields do not fit"),
        ({"title": "Hi \ud83d"}, "is damaged: half of a UTF-16 pair after"),
        ({"settings": {"system": "\udc00"}}, "half of a UTF-16 pair"),
        ({"messages": [REPLIED[0], REPLIED[1] | {"reasoning": "\ud800"}]}, "half of a UTF-16 pair"),
    ],
    ids=str,
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, change, line):
    path = tmp_path / "talk.json"
    store.save(store.Conversation(TURNS, date="2026-11-22T10:00:00"), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BareloopError) as refused:
        store.load(path)
    assert line in str(refused.value)


def test_content_is_parsed_and_encoded_without_a_file(tmp_path):
    conversation = store.Conversation(TURNS, date="2026-11-22T10:00:00", title="Zoé \N{GRINNING FACE}")
    text = store.encode(conversation)
    assert store.parse(json.loads(text), "the file") == conversation
    store.save(conversation, tmp_path / "talk.json")
    assert (tmp_path / "talk.json").read_text() == text
    with pytest.raises(BareloopError, match=r"^the file is neither"):
        store.parse({}, "the file")


def test_whatever_was_said_can_be_written(tmp_path):
    said = [[{"role": "user", "content": "Hi \ud83d\ude00"}, {"role": "assistant", "content": "Half \ud83d!"}]]
    store.save(store.Conversation(said, title="\udc00", date="2026-11-22T10:00:00"), tmp_path / "talk.json")
    loaded = store.load(tmp_path / "talk.json")
    assert [message["content"] for message in loaded.turns[0]] == ["Hi \N{GRINNING FACE}", "Half \ufffd!"]
    assert loaded.title == "\ufffd"


def test_a_list_shows_the_title_or_the_beginning_of_the_first_message_in_one_line():
    assert store.heading("", []) == ""
    assert store.heading("", TURNS) == "Hi, I'm Zoé."
    assert store.heading("Two", TURNS) == "Two"
    words = [[{"role": "user", "content": "one\n two " * 100}]]
    assert len(store.heading("", words)) == 80 and store.heading("", words).startswith("one two one")
