"""The page with the models of another server."""

from __future__ import annotations

import subprocess
import sys

from chat.web.models.remote import RemoteModels
from tests.chat.models.chat_server import ChatServer
from tests.chat.web.test_web_program import Program
from tests.engine.remote.fake_server import serving

WITHOUT_TORCH = """
import sys
import chat.web.program, chat.web.models.remote
assert "torch" not in sys.modules
"""


def test_the_page_of_a_server_needs_no_torch():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_server_has_its_own_models(data, monkeypatch):
    for name in ("BARELOOP_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with serving(ChatServer().answer) as server, Program("--url", f"{server.url}/v1") as program:
        browser = program.browser
        names = [model["name"] for model in browser.get("state")["models"]]
        assert names[0] == "small"
        id = browser.new()
        value = browser.chat(id, "Hi!")
        assert value["turns"][0]["reply"] == "You said: Hi!"
        assert not value["can_score"]
        costs = browser.get(f"conversations/{id}/costs")
        assert costs == {"bytes_per_token": 0, "bandwidth": 0.0, "device": "", "dtype": "", "weights_bytes": 0}
        assert browser.http.get("/v1/models").status_code == 404
        tab = browser.listen(id)
        browser.line(id, f"/model {names[1]}")
        assert tab.rest(lambda value: value["model"] == names[1])
        program.end()


def test_a_name_that_the_server_does_not_have_is_not_offered():
    models = RemoteModels(None, ["small", "org/large"])  # type: ignore[arg-type]
    assert models.resolve("org/large") == "org/large"
    assert models.resolve("huge") is None
