"""The agent: commands, saving, and conversations that are continued."""

from __future__ import annotations

import json
import re

import pytest

from chat import store
from chat.agent import Agent
from chat.commands import COMMANDS, is_command
from chat.conversation.events import Notice, Settings
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


def test_undo_says_which_version_is_shown_again(agent):
    for line in ("Hello!", "Who are you?", "/branch 1 Good day!"):
        list(agent.handle(line))
    assert output(agent, "/undo") == "removed: Good day!\nmessage 1 now shows version 1 of 1, with what followed it"
    assert len(agent.session.turns) == 2
    assert output(agent, "/undo") == "removed: Who are you?"


def test_versions_are_listed_from_where_they_differ(agent):
    start = "Tell me at great length what you know about "
    agent.session.turns = [[{"role": "user", "content": f"{start}cats."}, {"role": "assistant", "content": "Yes."}]]
    assert output(agent, "/version 1") == f"* 1  {start}cats. | Yes."
    _ = agent.session.tree
    agent.session.turns = [[{"role": "user", "content": f"{start}cows."}, {"role": "assistant", "content": "Yes."}]]
    assert output(agent, "/version 1") == "  1  … cats. | Yes.\n* 2  … cows. | Yes."


def test_scored_probabilities_are_told_from_recorded_ones(agent):
    list(agent.handle("Hello!"))
    assert output(agent, "/logprobs").startswith("the tokens of the text, as the model reads it")
    output(agent, "/set logprobs 2")
    list(agent.handle("/retry"))
    assert output(agent, "/logprobs").startswith("1 ")


def test_statistics_prompt_and_alternatives_are_shown(agent):
    assert output(agent, "/logprobs").startswith("no probabilities yet")
    output(agent, "/set logprobs 2")
    list(agent.handle("Hello!"))
    assert "window" in output(agent, "/stats")
    assert len(output(agent, "/logprobs").splitlines()) == 6
    assert "User: Hello!" in output(agent, "/prompt")


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


def test_versions_titles_and_numbers_are_commands(agent):
    agent.session.configure(sampling={"max_new_tokens": 6, "logprobs": 2, "temperature": 0.0})
    for line in ("Hello!", "Who are you?", "/branch 1 Good day!"):
        list(agent.handle(line))
    assert [turn[0]["content"] for turn in agent.session.turns] == ["Good day!"]
    first, second = output(agent, "/version 1").splitlines()
    assert first.startswith("  1  Hello! | ") and second.startswith("* 2  Good day! | ")
    assert output(agent, "/version 1 1") == "version 1 of 2 of message 1"
    assert len(agent.session.turns) == 2
    rows = output(agent, "/logprobs 1").splitlines()
    assert len(rows) == 6 and rows[3].startswith("4 ")
    list(agent.handle("/fork 1 4 2"))
    assert agent.session.tree.version(0) == (2, 3)
    assert repr(agent.session.tokens_of(0)[3].text) in rows[3].split(", 2 ")[1]
    assert "the reply will hardly differ" in output(agent, "/retry 1")
    assert output(agent, "/title") == "title: none"
    assert output(agent, "/title  A  good\tday ") == "title: A good day"
    assert output(agent, "/load") == f"{agent.path.stem}  A good day"
    for line, error in (
        ("/retry 7", "message 7: this conversation has 1"),
        ("/retry x", "'x' is not the number of a message; they count from 1"),
        ("/branch 1", "/branch needs the number of a message and its new text"),
        ("/branch 0 hm", "'0' is not the number of a message"),
        ("/version", "/version needs the number of a message"),
        ("/version 1 9", "version 9: message 1 has 4"),
        ("/fork 1 2", "/fork needs three numbers"),
        ("/fork 1 2 -1", "'-1' is not the number of an alternative"),
        ("/logprobs 3", "message 3: this conversation has 1"),
        (f"/title {'x' * 201}", "a title has up to 200 characters"),
    ):
        with pytest.raises(UsageError) as refused:
            output(agent, line)
        assert error in str(refused.value)
    other = Agent(LocalModel.load, agent.name, Settings())
    output(other, f"/load {agent.path.stem}")
    assert other.session.title == "A good day"
    assert output(other, "/version 1") == output(agent, "/version 1")
    output(other, "/version 1 1")
    assert other.session.turns[1][0]["content"] == "Who are you?"
    assert output(other, '/title ""') == "title: none"


def test_each_screen_has_its_commands(agent):
    agent.screen = "page"
    names = [line.split()[0] for line in output(agent, "/help").splitlines()]
    assert set(COMMANDS) - {name[1:] for name in names} == {"quit", "save", "load", "clear", "stream", "image"}
    with pytest.raises(UsageError, match="/load is a command of the terminal"):
        output(agent, "/load x")
    with pytest.raises(UsageError, match="/help lists all commands"):
        output(agent, "/quitt")


def test_a_copy_goes_on_by_itself(agent):
    for line in ("Hello!", "/retry", "/title Two", "Who are you?"):
        list(agent.handle(line))
    other = Agent(LocalModel.load, agent.name, Settings(sampling={"max_new_tokens": 3}))
    other.copy(agent)
    assert other.session.turns == agent.session.turns
    assert (other.session.title, other.session.tree.version(0)) == ("Two", (1, 2))
    list(other.handle("/undo"))
    list(other.handle("And you?"))
    assert agent.session.turns[1][0]["content"] == "Who are you?"
    assert other.path != agent.path
    assert store.load(other.path).turns[1][0]["content"] == "And you?"


def test_another_model_keeps_the_versions_and_scores_tokens_itself(agent):
    for line in ("Hello!", "/retry"):
        list(agent.handle(line))
    scored = agent.session.tokens_of(0)
    assert agent.session.tokens_of(0) is scored
    list(agent.handle("/model demo"))
    assert agent.session.tree.version(0) == (1, 2)
    assert agent.session.tokens_of(0) != scored
