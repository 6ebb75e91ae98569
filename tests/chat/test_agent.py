"""The agent, its commands and its pipes: what a user types, and what comes of it."""

from __future__ import annotations

import io
import json

import pytest

from chat import store
from chat.agent import Agent
from chat.commands import COMMANDS, is_command
from chat.events import Notice, Reply, Settings
from chat.pipe import Pipe
from engine import LLM
from engine.runtime.errors import BareloopError, UsageError


@pytest.fixture
def agent(shared, tmp_path, monkeypatch) -> Agent:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = str(shared / "checkpoints" / "llama-tinystories-656k")
    return Agent(LLM.load, folder, Settings(sampling={"max_new_tokens": 6}))


def told(agent: Agent, line: str) -> str:
    """What a command answers."""
    return "\n".join(event.text for event in agent.take(line) if isinstance(event, Notice))


def test_every_command_has_help_of_one_line(agent):
    text = told(agent, "/help")
    assert all(f"/{name}" in text for name in COMMANDS)
    assert len(text.splitlines()) == len(COMMANDS)


def test_what_is_a_command():
    assert is_command("/help")
    assert not is_command("/usr/bin is a path")
    assert not is_command("// a comment")
    assert not is_command("half / half")


def test_switches_toggle_and_settings_are_checked(agent):
    assert told(agent, "/history") == "history is off; the log is kept either way"
    assert told(agent, "/history on").startswith("history is on")
    assert told(agent, "/stream off") == "streaming is off"
    assert told(agent, "/set top-p 0.5") == "top_p = 0.5"
    assert agent.session.params.top_p == 0.5
    for line, error in (
        ("/histroy", "did you mean /history?"),
        ("/history maybe", "on or off, not 'maybe'"),
        ("/set temprature 1", "did you mean temperature?"),
        ("/set top_k many", "top_k is a number, not 'many'"),
        ("/set top_p 2", "top_p = 2.0: use more than 0, up to 1"),
        ("/strategy slide", "no strategy 'slide'"),
        ("/retry", "nothing has been said yet"),
    ):
        with pytest.raises(UsageError) as refused:
            told(agent, line)
        assert error in str(refused.value)
    assert agent.session.params.top_p == 0.5
    with pytest.raises(EOFError):
        told(agent, "/quit")


def test_every_turn_is_kept_and_can_be_gone_on_with(agent):
    list(agent.take("Hello!"))
    list(agent.take("Who are you?"))
    other = Agent(LLM.load, agent.name, Settings())
    assert told(other, f"/load {agent.path.stem}").startswith("loaded 2 turns")
    assert other.session.turns == agent.session.turns
    assert other.session.settings == agent.session.settings
    assert other.session.tokens() == agent.session.tokens()
    assert store.latest() == agent.path


def test_what_cannot_be_loaded_changes_nothing(agent, tmp_path):
    list(agent.take("Hello!"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(BareloopError, match="is not JSON"):
        told(agent, f"/load {tmp_path / 'bad.json'}")
    assert len(agent.session.turns) == 1


def test_a_disk_that_is_full_costs_only_the_file(agent, monkeypatch):
    def full(*_: object) -> None:
        raise BareloopError("cannot write: no space left on device")

    monkeypatch.setattr(store, "save", full)
    events = list(agent.take("Hello!"))
    assert isinstance(events[-1], Notice)
    assert events[-1].text == "not saved: cannot write: no space left on device"
    assert any(isinstance(event, Reply) for event in events)


def test_clear_begins_a_new_file(agent):
    list(agent.take("Hello!"))
    before = agent.path
    told(agent, "/clear")
    assert before.exists()
    assert agent.path != before
    assert agent.session.turns == []


def test_statistics_tokens_and_alternatives_can_be_seen(agent):
    assert told(agent, "/logprobs").startswith("no probabilities are known yet")
    told(agent, "/set logprobs 2")
    list(agent.take("Hello!"))
    assert "window" in told(agent, "/stats")
    assert len(told(agent, "/logprobs").splitlines()) == 6
    assert "User: Hello!" in told(agent, "/prompt")


def test_pipes_carry_replies_alone(agent, capsys):
    Pipe(agent).talk(io.StringIO("Hello!\n\n/nonsense\n/stats\nAnd you?\n/quit\nnever\n"))
    out, err = capsys.readouterr()
    assert out.count("\n\n") == 2
    assert "no command /nonsense" in err
    assert "window" in err
    assert len(agent.session.turns) == 2


def test_json_is_one_object_a_line(agent, capsys):
    Pipe(agent, as_json=True).talk(io.StringIO("Hello!\n/nonsense\n"))
    reply, error = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (reply["type"], reply["turn"], reply["finish_reason"]) == ("reply", 1, "length")
    assert reply["usage"]["completion_tokens"] == 6
    assert error["type"] == "error"


def test_what_another_program_wrote_is_left_alone(agent):
    list(agent.take("Hello!"))
    other = Agent(LLM.load, agent.name, Settings(sampling={"max_new_tokens": 3}))
    list(other.take(f"/load {agent.path.stem}"))
    list(other.take("My dog is called Rex."))
    shared_file = agent.path
    notices = [event.text for event in agent.take("How are you?") if isinstance(event, Notice)]
    assert "was changed by another program" in notices[-1]
    assert agent.path != shared_file
    assert "Rex" in shared_file.read_text()
    assert "How are you?" in agent.path.read_text()


def test_save_replaces_conversations_alone(agent, tmp_path):
    list(agent.take("Hello!"))
    (tmp_path / "thesis.md").write_text("mine")
    with pytest.raises(UsageError, match="is no conversation"):
        told(agent, f"/save {tmp_path / 'thesis.md'}")
    assert (tmp_path / "thesis.md").read_text() == "mine"
    for _ in range(2):
        assert "saved" in told(agent, f"/save {tmp_path / 'talk.json'}")


def test_a_message_without_a_reply_waits_to_be_sent_again(agent, tmp_path):
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}]
    (tmp_path / "talk.json").write_text(json.dumps([*messages, {"role": "user", "content": "My name is Bo."}]))
    agent.session.configure(system="Be kind.")
    text = told(agent, f"/load {tmp_path / 'talk.json'}")
    assert "loaded 1 turns" in text
    assert "assistant: Hello!" in text
    assert agent.draft == "My name is Bo."
    assert agent.session.settings.system == "Be kind."
    list(agent.take("My name is Bo."))
    assert len(store.load(agent.path).turns) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"sampling": {"foo": 1}}},
        {"settings": {"sampling": {"temperature": "hot"}}},
        {"settings": {"sampling": [1]}},
        {"settings": {"window": "x"}},
        {"settings": {"system": 5}},
        {"date": "nonsense"},
        {"messages": [{"role": "user", "content": "\ud800"}]},
    ],
    ids=str,
)
def test_a_damaged_conversation_changes_nothing(agent, tmp_path, change):
    list(agent.take("Hello!"))
    content = json.loads(agent.path.read_text())
    (tmp_path / "bad.json").write_text(json.dumps(content | change))
    with pytest.raises(BareloopError):
        told(agent, f"/load {tmp_path / 'bad.json'}")
    assert "window" in told(agent, "/stats")


def test_conversations_are_listed_and_names_of_them_taken_as_they_are(agent):
    assert told(agent, "/load") == "no conversation is kept yet"
    list(agent.take("Hello!"))
    assert told(agent, "/load") == f"{agent.path.stem}  Hello!"
    with pytest.raises(BareloopError, match="no file and no conversation"):
        told(agent, "/load **")


def test_settings_can_be_taken_back(agent):
    told(agent, "/set seed 5")
    assert agent.session.params.seed == 5
    assert told(agent, "/set seed default") == "seed = None"
    told(agent, "/system Be kind.")
    assert told(agent, '/system ""') == "system prompt: none"


def test_other_words_for_leaving(agent):
    for line in ("/exit", "/q", " /bye"):
        with pytest.raises(EOFError):
            told(agent, line)


def test_windows_line_ends_are_no_part_of_a_line_and_failures_are_told(agent):
    assert Pipe(agent).talk(io.StringIO("/stats\r\nHello!\r\n"))
    assert agent.session.turns[0][0]["content"] == "Hello!"
    assert not Pipe(agent).talk(io.StringIO("/nonsense\n"))
