"""Ids -> snapshots, against a local stand-in for the hub's API."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from engine.checkpoints.hub import find_model
from engine.runtime.errors import BareloopError

COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """Serves one repository, me/tiny; me/gated is gated, all else is unknown. Remembers what was fetched."""

    files: dict[str, bytes]
    fetched: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if "me/gated" in path:
            self._send(403, b'{"error": "gated"}', {"X-Error-Code": "GatedRepo"}, body)
        elif "me/tiny" not in path:
            self._send(404, b'{"error": "none"}', {"X-Error-Code": "RepoNotFound"}, body)
        elif "/resolve/" in path:
            name = path.partition(f"/resolve/{COMMIT}/")[2]
            content = self.files[name]
            if body:
                self.fetched.append(name)
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self._send(200, content, headers, body)
        elif "/tree/" in path:
            listing = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
            self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, body)
        else:
            siblings = [{"rfilename": name} for name in self.files]
            info = {"id": "me/tiny", "modelId": "me/tiny", "sha": COMMIT, "siblings": siblings}
            self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub(tiny_llama) -> Iterator[tuple[str, type[Hub]]]:
    files = {path.name: path.read_bytes() for path in tiny_llama.folder.iterdir()}
    files |= {"README.md": b"hello", "pytorch_model.bin": b"x" * 1000, "consolidated.safetensors": b"y" * 1000}
    handler = type("ThisHub", (Hub,), {"files": files, "fetched": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def load(name: str, cache: Path, endpoint: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Load in a process of its own, because huggingface_hub reads its environment once."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": ".",
        **more,
    }
    return subprocess.run(
        [sys.executable, "-m", "engine", "--inspect", "-m", name],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_only_the_files_needed_are_fetched_and_then_never_again(hub, tmp_path):
    endpoint, handler = hub
    first = load("me/tiny", tmp_path, endpoint)
    assert first.returncode == 0, first.stderr
    assert "llama" in first.stdout
    assert set(handler.fetched) == {"config.json", "generation_config.json", "model.safetensors"}
    handler.fetched.clear()
    assert load("me/tiny", tmp_path, "http://127.0.0.1:9").returncode == 0  # the cache needs no hub
    assert load("me/tiny", tmp_path, endpoint, HF_HUB_OFFLINE="1").returncode == 0
    assert handler.fetched == []


@pytest.mark.parametrize(
    ("name", "environment", "message"),
    [
        ("me/gated", {}, "me/gated is gated: accept its terms on its hub page, then set HF_TOKEN"),
        (
            "me/unknown",
            {},
            "me/unknown is neither a folder here nor a repository on the hub (a private one needs HF_TOKEN)",
        ),
        ("me/tiny", {"HF_HUB_OFFLINE": "1"}, "not complete in the cache, and HF_HUB_OFFLINE is set"),
        ("me/tiny", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached"),
    ],
)
def test_what_the_hub_cannot_give_is_one_line(hub, tmp_path, name, environment, message):
    done = load(name, tmp_path, hub[0], **environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_an_incomplete_snapshot_is_completed(hub, tmp_path):
    endpoint, handler = hub
    load("me/tiny", tmp_path, endpoint)
    (weights,) = tmp_path.rglob("snapshots/*/model.safetensors")
    weights.unlink()
    handler.fetched.clear()
    assert load("me/tiny", tmp_path, endpoint).returncode == 0


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "what is this?"])
def test_paths_that_are_no_ids_are_not_asked_for(name):
    with pytest.raises(BareloopError, match="no such folder"):
        find_model(name)
