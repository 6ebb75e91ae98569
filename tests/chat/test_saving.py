"""When a conversation is saved: before a reply, during it and after, on a full disk, and beside other programs."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from chat import store
from chat.agent import Agent
from chat.conversation.events import Notice, Piece, Reply, Settings
from chat.models.local import LocalModel
from engine.runtime.errors import BareloopError, UsageError
from tests.chat.test_agent import output


def full(*_: object) -> None:
    raise BareloopError("cannot write: no space left on device")


def test_a_full_disk_costs_only_the_file(agent, monkeypatch):
    monkeypatch.setattr(store, "save", full)
    events = list(agent.handle("Hello!"))
    assert isinstance(events[-1], Notice)
    assert events[-1].text == "not saved: cannot write: no space left on device"
    assert any(isinstance(event, Reply) for event in events)


def test_what_could_not_be_saved_is_not_left_for_another_conversation(agent, monkeypatch, tmp_path):
    list(agent.handle("Hello!"))
    old = agent.path
    list(agent.handle("/clear"))
    save = store.save
    monkeypatch.setattr(store, "save", full)
    list(agent.handle("Who are you?"))
    for line in ("/clear", f"/load {old}"):
        with pytest.raises(
            BareloopError, match=r"not saved: cannot write: no space .* stays open: free some space, or"
        ):
            list(agent.handle(line))
        assert agent.session.turns[0][0]["content"] == "Who are you?"
    agent.autosave = False  # as with --no-save
    list(agent.handle("/clear"))
    agent.autosave = True
    list(agent.handle("Who are you?"))
    monkeypatch.setattr(store, "save", save)
    output(agent, f"/save {tmp_path / 'elsewhere.json'}")
    monkeypatch.setattr(store, "save", full)
    output(agent, f"/load {old}")
    assert agent.session.turns[0][0]["content"] == "Hello!"


def saved(agent: Agent) -> tuple[list[dict], Agent]:
    """The messages of the conversation's file, and an agent that has loaded it."""
    other = Agent(LocalModel.load, agent.name, agent.session.settings, autosave=False)
    list(other.handle(f"/load {agent.path}"))
    return json.loads(agent.path.read_text())["messages"], other


def test_a_message_is_in_the_file_before_its_reply_is_computed(agent, monkeypatch):
    generate, found = agent.session.model.generate, []

    def look(*arguments: Any) -> Any:
        found.append([message["content"] for message in json.loads(agent.path.read_text())["messages"]])
        return generate(*arguments)

    monkeypatch.setattr(agent.session.model, "generate", look)
    for line in ("Hello!", "Who are you?", "/edit And who?", "/branch 1 Hey."):
        list(agent.handle(line))
    assert [messages[::2] for messages in found] == [
        ["Hello!"],
        ["Hello!", "Who are you?"],
        ["Hello!", "And who?"],
        ["Hey."],
    ]
    assert [len(messages) % 2 for messages in found] == [1] * 4


def test_a_long_reply_is_saved_while_it_comes_and_goes_on_after_a_kill(agent, monkeypatch):
    monkeypatch.setattr("chat.agent.SAVE_INTERVAL", 0.0)
    monkeypatch.setattr("chat.agent.SAVE_FACTOR", 0)
    list(agent.handle("Hello!"))
    for line in ("Who are you?", "/retry", "/continue"):
        before = agent.session.turns[-1][1]["content"] if line == "/continue" else ""
        events = agent.handle(line)
        pieces = list(itertools.islice((event for event in events if isinstance(event, Piece)), 3))
        messages, other = saved(agent)
        text = before + "".join(piece.text for piece in pieces)
        assert messages[-1] == {"role": "assistant", "content": text, "finish_reason": "cancelled"}
        reply = list(other.handle("/continue"))[-1]
        assert reply.text.startswith(text) and len(reply.text) > len(text)
        list(events)
    assert agent.session.tree.version(1) == (1, 2)


def test_saving_a_long_conversation_takes_a_small_share_of_the_time(agent, monkeypatch):
    now, saves = 0.0, []

    def clock() -> float:
        return now

    def slow(*_: object) -> None:
        nonlocal now
        now += 1.0
        saves.append(now)

    monkeypatch.setattr("chat.agent.time.monotonic", clock)
    monkeypatch.setattr(store, "save", slow)
    agent.session.configure(sampling={"max_new_tokens": 100, "ignore_eos": True, "temperature": 0.7, "seed": 1})
    for event in agent.handle("Hello!"):
        now += 2.0 * isinstance(event, Piece)
    assert len(saves) >= 4
    assert all(later - earlier > 50 for earlier, later in itertools.pairwise(saves[:-1]))


def test_a_message_without_a_reply_stays_in_the_file(agent, monkeypatch):
    def broken(*_: object) -> None:
        raise BareloopError("broken")

    generate = agent.session.model.generate
    monkeypatch.setattr(agent.session.model, "generate", broken)
    with pytest.raises(BareloopError):
        list(agent.handle("Who are you?"))
    output(agent, "/title One")
    monkeypatch.setattr(agent.session.model, "generate", generate)
    other = saved(agent)[1]
    assert (other.draft, other.session.turns, other.session.title) == ("Who are you?", [], "One")
    other.autosave = True
    output(other, "/title Two")
    other = saved(agent)[1]
    assert (other.draft, other.session.title) == ("Who are you?", "Two")
    other.autosave = True
    list(other.handle("And you?"))
    assert [message["content"] for message in saved(agent)[0]][::2] == ["And you?"]


def test_a_line_that_is_no_unicode_is_refused(agent):
    for line in ("Hello \ud83d!", "/system Be \udc00"):
        with pytest.raises(UsageError, match="half of a UTF-16 pair"):
            list(agent.handle(line))
    list(agent.handle("Hello!"))
    assert agent.is_saved


def test_clear_starts_a_new_file_with_the_date_that_the_template_prints(agent):
    list(agent.handle("Hello!"))
    before, date = agent.path, agent.session.now
    output(agent, "/clear")
    assert before.exists()
    assert agent.path != before
    assert agent.session.turns == []
    assert agent.path.stem == store.new_id(agent.session.now)
    assert agent.session.now > date


def test_a_file_changed_by_another_program_is_not_overwritten(agent):
    list(agent.handle("Hello!"))
    other = Agent(LocalModel.load, agent.name, Settings(sampling={"max_new_tokens": 3}))
    list(other.handle(f"/load {agent.path.stem}"))
    list(other.handle("My dog is called Rex."))
    shared_file = agent.path
    notices = [event.text for event in agent.handle("How are you?") if isinstance(event, Notice)]
    assert "was changed by another program" in notices[-1]
    assert agent.path != shared_file
    assert "Rex" in shared_file.read_text()
    assert "How are you?" in agent.path.read_text()


def test_save_overwrites_only_conversations(agent, tmp_path):
    list(agent.handle("Hello!"))
    (tmp_path / "thesis.md").write_text("mine")
    with pytest.raises(UsageError, match="is not a conversation"):
        output(agent, f"/save {tmp_path / 'thesis.md'}")
    assert (tmp_path / "thesis.md").read_text() == "mine"
    for _ in range(2):
        assert "saved" in output(agent, f"/save {tmp_path / 'talk.json'}")


def test_a_kill_after_the_first_piece_loses_no_message(agent):
    list(agent.handle("Hello!"))
    for line, draft, shown in (("Who are you?", "Who are you?", 1), ("/retry", "", 1), ("/edit Hey.", "Hey.", 1)):
        events = agent.handle(line)
        next(event for event in events if isinstance(event, Piece))
        other = Agent(LocalModel.load, agent.name, Settings(), autosave=False)
        output(other, f"/load {agent.path}")
        assert (other.draft, len(other.session.turns)) == (draft, shown)
        assert other.session.turns[0][0]["content"] == "Hello!"
        assert len(other.session.turns[0]) == 2
        events.close()
        while len(agent.session.turns) > 1 or agent.session.tree.version(0)[1] > 1:
            agent.session.undo()
        assert agent.session.turns[0][0]["content"] == "Hello!"


def test_conversations_that_begin_in_the_same_millisecond_get_different_files(agent):
    paths = {store.new_path(agent.session.now) for _ in range(20)}
    assert len({*paths, agent.path}) == 21
    assert agent.is_saved
    list(agent.handle("Hello!"))
    assert agent.is_saved
    later = store.new_path(agent.session.now)
    assert later not in paths and later != agent.path
