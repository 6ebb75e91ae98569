"""python -m chat --url: the program with a model of a server."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from chat import store
from chat.__main__ import main, parser
from chat.agent import Agent
from chat.conversation.events import Notice, Settings
from chat.models.remote import Server
from engine.runtime.errors import BareloopError, UsageError
from tests.chat.models.chat_server import ChatServer
from tests.engine.remote.fake_server import serving

WITHOUT_TORCH = """
import sys
from chat.__main__ import main, parser
main(parser().parse_args())
assert "torch" not in sys.modules
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in ("BARELOOP_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))


def run(*arguments: str) -> None:
    main(parser().parse_args(arguments))


def output(agent: Agent, line: str) -> str:
    """The output of a command."""
    return "\n".join(event.text for event in agent.handle(line) if isinstance(event, Notice))


def test_the_program_loads_no_torch_and_talks_with_the_first_model():
    chat = ChatServer()
    with serving(chat.answer) as server:
        command = [sys.executable, "-c", WITHOUT_TORCH, "--url", f"{server.url}/v1", "-p", "Hi!"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout, result.stderr) == (0, "You said: Hi!\n\n", "")
    assert chat.bodies[0]["model"] == "small"


def test_pipes_have_one_reply_or_json_object_per_line(monkeypatch, capsys):
    with serving(ChatServer().answer) as server:
        monkeypatch.setattr("sys.stdin", io.StringIO("Hi!\n/set temprature 1\nAnd you?\n"))
        with pytest.raises(SystemExit):  # as one line failed
            run("--url", server.url, "-m", "org/large", "--json")
    first, error, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["text"], first["usage"]["window"], first["usage"]["cached_tokens"]) == ("You said: Hi!", 1000, 3)
    assert (error["type"], second["turn"]) == ("error", 2)


def test_commands_know_the_server(tmp_path):
    with serving(ChatServer().answer) as server:
        agent = Agent(Server(server.url).load, "small", Settings())
        list(agent.handle("Hi!"))
        text = output(agent, "/stats")
        assert f"model      small, {server.url}" in text
        assert "window     10 of 1,000 tokens (1%)" in text
        assert output(agent, "/set temperature default") == "temperature = as the server sets it"
        assert output(agent, "/model org/large") == "now org/large, with a window of 1,000 tokens"
        list(agent.handle("Hi!"))
        with pytest.raises(BareloopError, match="has no model 'big'; it has 'small', 'org/large'"):
            output(agent, "/model big")
        with pytest.raises(UsageError, match="needs one of: small, org/large; the current model is org/large"):
            output(agent, "/model")
        assert len(agent.session.turns) == 2


def test_a_conversation_with_a_server_resumes_with_a_local_model_and_the_reverse(agent):
    with serving(ChatServer().answer) as server:
        with_password = server.url.replace("//", "//me:secret@")
        remote = Agent(Server(with_password).load, "small", Settings(sampling={"max_new_tokens": 6}))
        list(remote.handle("Hi!"))
        saved = store.load(remote.path)
        assert (saved.model, saved.url) == ("small", server.url)
        assert "secret" not in remote.path.read_text()
        text = output(agent, f"/load {remote.path.stem}")
        assert text.startswith("loaded 1 turns")
        assert f"it was written with small, and the current model is {agent.name}" in text
        list(agent.handle("And you?"))
        assert store.load(agent.path).url == ""
        text = output(remote, f"/load {agent.path.stem}")
        assert text.startswith("loaded 2 turns")
        assert "and the current model is small" in text
        list(remote.handle("Well?"))
        assert [turn[0]["content"] for turn in remote.session.turns] == ["Hi!", "And you?", "Well?"]


def test_the_key_is_read_from_a_file_and_sent(tmp_path):
    (tmp_path / "key").write_text("sk-123\n")
    with serving(ChatServer().answer) as server:
        run("--url", server.url, "--api-key-file", str(tmp_path / "key"), "-p", "Hi!")
        assert {asked.headers.get("Authorization") for asked in server.asked} == {"Bearer sk-123"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--url", "http://127.0.0.1:1", "--quant", "int8"), "--quant is for models that this program loads"),
        (("--url", "http://127.0.0.1:1", "--no-cuda-graphs"), "--no-cuda-graphs is for models"),
        (("--api-key-file", "key"), "--api-key-file is for a server: add --url"),
        (("--url", "ftp://host", "-m", "small"), "is not the address of a server"),
    ],
    ids=str,
)
def test_flags_that_do_not_go_together_are_refused(arguments, line):
    with pytest.raises(UsageError, match=line):
        run(*arguments)
