"""The agent: commands, saving, and conversations that are continued."""

from __future__ import annotations

import json
import re

import pytest

from chat import store
from chat.agent import Agent
from chat.commands import COMMANDS, is_command
from chat.events import Notice, Reply, Settings
from chat.models.local import LocalModel
from engine.runtime.errors import BareloopError, UsageError


def output(agent: Agent, line: str) -> str:
    """The output of a command."""
    return "\n".join(event.text for event in agent.handle(line) if isinstance(event, Notice))


def test_every_command_has_help_of_one_line(agent):
    text = output(agent, "/help")
    assert all(f"/{name}" in text for name in COMMANDS)
    assert len(text.splitlines()) == len(COMMANDS)


def test_paths_and_comments_are_not_commands():
    assert is_command("/help")
    assert not is_command("/usr/bin is a path")
    assert not is_command("// a comment")
    assert not is_command("half / half")


def test_toggles_and_settings_are_checked(agent):
    assert output(agent, "/history") == "history is off; all messages are kept either way"
    assert output(agent, "/history on").startswith("history is on")
    assert output(agent, "/stream off") == "streaming is off"
    assert output(agent, "/set top-p 0.5") == "top_p = 0.5"
    assert agent.session.params.top_p == 0.5
    for line, error in (
        ("/histroy", "did you mean /history?"),
        ("/history maybe", "use on or off, not 'maybe'"),
        ("/set temprature 1", "did you mean temperature?"),
        ("/set top_k many", "top_k needs a whole number, not 'many'"),
        ("/set top_p 2", "top_p = 2.0: use more than 0, up to 1"),
        ("/strategy slide", "unknown strategy 'slide'"),
        ("/retry", "there are no messages yet"),
    ):
        with pytest.raises(UsageError) as refused:
            output(agent, line)
        assert error in str(refused.value)
    assert agent.session.params.top_p == 0.5
    with pytest.raises(EOFError):
        output(agent, "/quit")


def test_every_turn_is_saved_and_can_be_continued(agent):
    list(agent.handle("Hello!"))
    list(agent.handle("Who are you?"))
    other = Agent(LocalModel.load, agent.name, Settings())
    assert output(other, f"/load {agent.path.stem}").startswith("loaded 2 turns")
    assert other.session.turns == agent.session.turns
    assert other.session.settings == agent.session.settings
    assert other.session.tokens() == agent.session.tokens()
    assert store.latest() == agent.path


def test_a_file_that_cannot_be_loaded_changes_nothing(agent, tmp_path):
    list(agent.handle("Hello!"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(BareloopError, match="is not JSON"):
        output(agent, f"/load {tmp_path / 'bad.json'}")
    assert len(agent.session.turns) == 1


def test_a_full_disk_costs_only_the_file(agent, monkeypatch):
    def full(*_: object) -> None:
        raise BareloopError("cannot write: no space left on device")

    monkeypatch.setattr(store, "save", full)
    events = list(agent.handle("Hello!"))
    assert isinstance(events[-1], Notice)
    assert events[-1].text == "not saved: cannot write: no space left on device"
    assert any(isinstance(event, Reply) for event in events)


def test_clear_starts_a_new_file_with_the_date_that_the_template_prints(agent):
    list(agent.handle("Hello!"))
    before, date = agent.path, agent.session.now
    output(agent, "/clear")
    assert before.exists()
    assert agent.path != before
    assert agent.session.turns == []
    assert agent.path.stem == store.new_id(agent.session.now)
    assert agent.session.now > date


def test_statistics_prompt_and_alternatives_are_shown(agent):
    assert output(agent, "/logprobs").startswith("no probabilities yet")
    output(agent, "/set logprobs 2")
    list(agent.handle("Hello!"))
    assert "window" in output(agent, "/stats")
    assert len(output(agent, "/logprobs").splitlines()) == 6
    assert "User: Hello!" in output(agent, "/prompt")


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


def test_a_message_without_a_reply_is_offered_to_be_sent_again(agent, tmp_path):
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}]
    (tmp_path / "talk.json").write_text(json.dumps([*messages, {"role": "user", "content": "My name is Bo."}]))
    agent.session.configure(system="Be kind.")
    text = output(agent, f"/load {tmp_path / 'talk.json'}")
    assert "loaded 1 turns" in text
    assert "assistant: Hello!" in text
    assert agent.draft == "My name is Bo."
    assert agent.session.settings.system == "Be kind."
    list(agent.handle("My name is Bo."))
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
    list(agent.handle("Hello!"))
    content = json.loads(agent.path.read_text())
    (tmp_path / "bad.json").write_text(json.dumps(content | change))
    with pytest.raises(BareloopError):
        output(agent, f"/load {tmp_path / 'bad.json'}")
    assert "window" in output(agent, "/stats")


def test_conversations_are_listed_and_their_names_are_not_patterns(agent):
    assert output(agent, "/load") == "there are no saved conversations yet"
    list(agent.handle("Hello!"))
    assert output(agent, "/load") == f"{agent.path.stem}  Hello!"
    with pytest.raises(BareloopError, match="no file or conversation"):
        output(agent, "/load **")


def test_settings_can_be_reset(agent):
    output(agent, "/set seed 5")
    assert agent.session.params.seed == 5
    assert output(agent, "/set seed default") == "seed = None"
    output(agent, "/system Be kind.")
    assert output(agent, '/system ""') == "system prompt: none"


def test_aliases_of_quit(agent):
    for line in ("/exit", "/q", " /bye"):
        with pytest.raises(EOFError):
            output(agent, line)


def test_a_draft_leaves_the_replies_and_is_shown_by_stats(agent, draw_tiny):
    settings = Settings(sampling={"max_new_tokens": 40})
    plain, drafting = (
        Agent(lambda name, draft=draft: LocalModel.load(name, draft=draft), agent.name, settings, autosave=False)
        for draft in (None, "prompt")
    )
    for line in ("Hello!", "Tell me of a big red ball, a big red ball, a big red ball.", "/continue"):
        texts, found = ([event.text for event in agent.handle(line)] for agent in (plain, drafting))
        assert found == texts
    assert "drafts " not in output(plain, "/stats")
    line = r"\ndrafts     (no drafted tokens|\d+% of \d+ drafted tokens right, .* x as fast as without drafts)(\n|$)"
    assert re.search(line, output(drafting, "/stats"))
    agent.load_model = drafting.load_model
    with pytest.raises(BareloopError, match="a mamba model cannot take back tokens"):
        output(agent, f"/model {draw_tiny('mamba').folder}")
    assert agent.session.turns == []
