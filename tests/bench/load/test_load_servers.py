"""Servers that are started and ended."""

from __future__ import annotations

import sys

import httpx2
import pytest

from bench.load import servers
from bench.load.servers import llama_command, started
from engine.runtime.errors import BareloopError

PROGRAM = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        self.send_response(200 if Handler.asked > 2 else 503)  # it loads its model at first
        self.end_headers()
    def log_message(self, *_): print("x" * 1000)
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print("loading")
print(f"serving on http://127.0.0.1:{server.server_port}/v1", flush=True)
server.serve_forever()
"""


def test_a_server_is_there_once_it_is_ready_and_is_ended_afterwards(monkeypatch):
    monkeypatch.setattr(servers, "POLL", 0.01)
    with started([sys.executable, "-c", PROGRAM]) as url:
        assert url.startswith("http://127.0.0.1:")
        with httpx2.Client(verify=False) as client:
            assert {client.get(url).status_code for _ in range(100)} == {200}  # its output, too, is read
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(url, verify=False)


def test_a_server_that_ends_at_once_is_one_line_with_its_last():
    program = "import sys; print('starting'); sys.exit('no such model')"
    with pytest.raises(BareloopError, match="has ended: no such model"), started([sys.executable, "-c", program]):
        pass


def test_llama_server_is_looked_for_in_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BareloopError, match="llama-server is not in the PATH"):
        llama_command(tmp_path / "model.gguf", 4, 512, 2)
    program = tmp_path / "llama-server"
    program.touch(mode=0o755)
    command = llama_command(tmp_path / "model.gguf", 4, 512, 2)
    assert command[0] == str(program) and command[command.index("--ctx-size") + 1] == "2048"
