"""python -m chat --web: flags, the embedded model, the API beside the page, and the end of the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import datetime

import pytest

from chat import store
from chat.__main__ import main, parser
from chat.agent import Agent
from chat.conversation.events import Settings
from chat.models.local import LocalModel
from engine.cli.parser import run
from tests.chat.web.conftest import Browser, opened


def fails(capsys, *flags: str) -> str:
    """Run the program with bad flags. -> its line"""
    with pytest.raises(SystemExit) as caught:
        run(parser(), main, flags)
    message = capsys.readouterr().err
    assert caught.value.code in (1, 2), message
    (line,) = [line for line in message.splitlines() if line.startswith("python -m chat: ")]
    return line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--web", "-p", "hi"], "--prompt is for the terminal, not for --web"),
        (["--web", "--plain"], "--plain is for the terminal"),
        (["--web", "--json"], "--json is for the terminal"),
        (["--web", "--port", "70000"], "--port 70000: use 0 to 65535"),
        (["--web", "--port", "-1"], "--port -1: use 0 to 65535"),
        (["--web", "--api", "--url", "http://127.0.0.1:1"], "--api serves models that this program loads"),
        (["--web", "--url", "http://127.0.0.1:1", "--quant", "int8"], "--quant is for models that this program loads"),
        (["--web", "--api-key-file", "x"], "--api-key-file is for a server: add --url"),
        (["--web", "-m", "demo", "demo"], "two models are called 'demo'"),
        (["--web", "-m", "demo", "--device", "toaster"], "unknown device 'toaster'"),
        (["--web", "-m", "/no/such/model", "--port", "0"], "no such folder: /no/such/model"),
        (["--web", "-m", "demo", "--resume", "nothing"], "no file or conversation 'nothing'"),
        (["--web", "-m", "demo", "--ctx-size", "0"], "--ctx-size 0: use 1 or more"),
        (["--web", "-m", "demo", "--ctx-size", "9", "--reserve", "9"], "a reserve of 9 tokens leaves no room"),
        (["-m", "demo", "--ctx-size", "3"], "a reserve of 0 tokens leaves no room in a window of 3"),
        (["--web", "-m", "demo", "no such model"], "no such folder: no such model"),
        (["--web", "-m", "demo", "a/b/c"], "no such folder: a/b/c"),
        (["--web", "-m", "demo", "ollama:not-there"], "Ollama has no model not-there"),
        (["--web", "-m", "demo", "a..b/c--d"], "a..b/c--d is neither a folder here nor a valid hub id"),
        (["--port", "1"], "--port is for the page in the browser: add --web"),
        (["--api"], "--api is for the page in the browser: add --web"),
        (["--no-browser"], "--no-browser is for the page in the browser: add --web"),
        (["-m", "demo", "demo"], "add --web to offer several"),
    ],
)
def test_a_bad_flag_is_one_line(data, capsys, flags, message):
    assert message in fails(capsys, *flags)


def test_help_needs_neither_torch_nor_a_server():
    check = (
        "import runpy, sys\nsys.argv = ['x', '--help']\n"
        "try: runpy.run_module('chat', run_name='__main__')\nexcept SystemExit: pass\n"
        "assert not {'torch', 'starlette', 'uvicorn', 'prometheus_client', 'rich', 'jinja2'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--no-browser" in done.stdout
    assert "on the page that of new conversations" in " ".join(done.stdout.split())
    assert "output, not with --web" in done.stdout


class Program:
    """The program as a process, and a browser that has opened its address."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "chat", "--web", "--port", "0", "--no-browser", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.address = next(line for line in self.process.stderr if line.startswith("open http")).split()[-1]
        self.browser = opened(self.address)

    def end(self, number: int = signal.SIGTERM) -> str:
        """Send a signal. -> what the program printed before its end"""
        self.process.send_signal(number)
        assert self.process.stderr is not None
        rest = self.process.stderr.read()
        assert self.process.wait(60) == 0, rest
        return rest

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.browser.close()
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


@pytest.fixture
def resumed(start):
    """Start the program in a thread: resumed(*flags) -> the conversation that it opens, as its id and a snapshot."""
    browsers: list[Browser] = []

    def begin(*flags: str):
        address = start(*flags)
        browsers.append(opened(address))
        id = address.partition("#/c/")[2]
        return id, browsers[-1].listen(id).next("snapshot")["value"]

    yield begin
    for browser in browsers:
        browser.close()


@pytest.mark.skipif(os.name != "posix", reason="needs SIGTERM")
def test_the_program_serves_the_page_and_the_api_until_a_signal(data):
    with Program("-m", "demo", "--api", "--system", "Be kind.", "--temperature", "0") as program:
        browser = program.browser
        names = [model["name"] for model in browser.get("state")["models"]]
        assert names == ["demo", "demo, int8", "demo, int4"]
        assert browser.get("state")["api"] == f"{browser.http.base_url}/v1".replace("//v1", "/v1")
        id = browser.new()
        value = browser.chat(id, "What is the capital of France?")
        assert value["turns"][0]["reply"]
        assert value["settings"]["system"] == "Be kind."
        assert value["limit"] == 1024
        reply = browser.get(f"conversations/{id}/tokens?turn=0")["tokens"]
        assert "".join(token[1] for token in reply) == value["turns"][0]["reply"]
        assert all(0 < token[2] <= 1 and len(token[3]) == 5 for token in reply)
        window = browser.get(f"conversations/{id}/window?scored=1")
        assert window["cached"] < window["prompt"] < len(window["tokens"])
        costs = browser.get(f"conversations/{id}/costs")
        assert (costs["device"], costs["dtype"]) == ("cpu", "float32")
        assert 0 < costs["weights_bytes"] < 2 * costs["bytes_per_token"]
        assert costs["bandwidth"] > 0
        again = browser.chat(id, "And of Italy?")
        assert again["turns"][1]["statistics"]["cached_tokens"] > 0
        tab = browser.listen(id)
        browser.line(id, "/model demo, int4")
        tab.rest(lambda value: value["model"] == "demo, int4")
        assert len(browser.chat(id, "And of Spain?")["turns"]) == 3
        body = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
        assert browser.http.post("/v1/chat/completions", json=body).json()["choices"]
        assert len(browser.http.get("/v1/models").json()["data"]) == 3
        rest = program.end()
        assert tab.wait(lambda tab: tab.has_ended)
        assert "Traceback" not in rest
        assert len(store.load(store.find(id)).turns) == 3
        assert store.load(store.find(id)).model == "demo, int4"


def test_the_page_ends_with_a_part_that_is_kept(page, browser):
    id = browser.new()
    tab = browser.listen(id)
    page.script.hold()
    page.script.say("kept", " part")
    browser.line(id, "talk")
    page.script.let(1)
    tab.wait(lambda tab: tab.text() == "kept")
    page.close()
    assert tab.wait(lambda tab: tab.has_ended)
    saved = store.load(store.find(id))
    assert saved.turns[0][1] == {"role": "assistant", "content": "kept", "finish_reason": "cancelled"}


def test_a_conversation_of_the_terminal_can_be_resumed(resumed):
    list(Agent(LocalModel.load, "demo", Settings()).handle("Who are you?"))
    id, value = resumed("-m", "demo", "--resume")
    assert id == store.latest().stem
    assert [turn["message"] for turn in value["turns"]] == ["Who are you?"]


def test_a_file_that_is_resumed_is_imported_and_flags_change_it(resumed, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I."}]))
    id, value = resumed("-m", "demo", "--resume", str(file), "--system", "Be kind.", "--top-k", "3")
    assert [turn["message"] for turn in value["turns"]] == ["Who are you?"]
    assert (value["settings"]["system"], value["settings"]["sampling"]) == ("Be kind.", {"top_k": 3})
    assert store.load(store.find(id)).settings.system == "Be kind."


@pytest.mark.parametrize("autosave", [True, False])
def test_flags_change_a_conversation_that_is_resumed(resumed, autosave):
    flags = ["-m", "demo", "--resume", *([] if autosave else ["--no-save"])]
    path = store.new_path(datetime.now())
    settings = store.Settings(system="Old.", history=False)
    store.save(store.Conversation([], settings, model="demo", date="2026-01-01T00:00:00"), path)
    id, value = resumed(*flags, "--strategy", "none")
    settings = value["settings"]
    assert id == path.stem
    assert (settings["system"], settings["history"], settings["strategy"]) == ("Old.", False, "none")
