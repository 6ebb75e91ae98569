"""Hub ids are resolved to snapshots, tested against a local server with the hub's API."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import LLM
from engine.checkpoints import embedded
from engine.checkpoints.hub import find_downloaded, find_model, find_tokenizer, locate
from engine.runtime.errors import BareloopError

COMMIT = "a" * 40
UNREACHABLE = "http://127.0.0.1:9"


class Hub(BaseHTTPRequestHandler):
    """A server with one repository, me/tiny; me/gated is gated, all others are unknown. It records the downloads."""

    files: dict[str, bytes]
    downloads: list[str]

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
                self.downloads.append(name)
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
    handler = type("ThisHub", (Hub,), {"files": files, "downloads": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Find a model, or call `find`, with this environment. huggingface_hub, which reads it once, is imported again."""

    def call(name: str, endpoint: str, find: Callable[..., Any] = find_model, **environment: str) -> Any:
        with monkeypatch.context() as patch:
            for variable in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
                patch.delenv(variable)
            settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", **environment}
            for variable, value in settings.items():
                patch.setenv(variable, value)
            for module in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
                patch.delitem(sys.modules, module)
            try:
                return find(name)
            finally:
                for module in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
                    del sys.modules[module]

    return call


def test_only_the_necessary_files_are_downloaded_and_only_once(hub, load):
    endpoint, handler = hub
    folder = load("me/tiny", endpoint)
    needed = {"config.json", "generation_config.json", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == set(handler.downloads) == needed
    handler.downloads.clear()
    assert load("me/tiny", UNREACHABLE) == folder
    assert load("me/tiny", endpoint, HF_HUB_OFFLINE="1") == folder
    assert handler.downloads == []


def test_a_downloaded_model_loads(hub, load, tiny_llama, prompt):
    ids = prompt(9)
    assert torch.equal(LLM.load(load("me/tiny", hub[0])).logits(ids), LLM.load(tiny_llama.folder).logits(ids))


@pytest.mark.parametrize(
    ("name", "environment", "message"),
    [
        ("me/gated", {}, "me/gated is gated: accept its terms on its hub page, then set HF_TOKEN"),
        ("me/unknown", {}, "me/unknown is neither a folder here nor a repository on the hub"),
        ("me/tiny", {"HF_HUB_OFFLINE": "1"}, "not complete in the cache, and HF_HUB_OFFLINE is set"),
        ("me/tiny", {"HF_ENDPOINT": UNREACHABLE}, "the hub cannot be reached"),
    ],
)
def test_what_the_hub_cannot_give_is_one_line(hub, load, name, environment, message):
    with pytest.raises(BareloopError) as caught:
        load(name, hub[0], **environment)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_a_tokenizer_only_its_files_are_downloaded_and_only_once(hub, load):
    endpoint, handler = hub
    names = ("tokenizer.json", "tokenizer_config.json")
    handler.files |= {name: (embedded.FOLDER / name).read_bytes() for name in names}
    folder = load("me/tiny", endpoint, find_tokenizer)
    assert {path.name for path in folder.iterdir()} == set(handler.downloads) == set(names)
    handler.downloads.clear()
    assert load("me/tiny", UNREACHABLE, find_tokenizer) == folder
    assert handler.downloads == []
    with pytest.raises(BareloopError, match="me/unknown is neither a folder here nor"):
        load("me/unknown", endpoint, find_tokenizer)


def test_a_tokenizer_needs_no_model(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((embedded.FOLDER / "tokenizer.json").read_bytes())
    assert find_tokenizer(tmp_path) == tmp_path
    assert find_tokenizer(embedded.NAME) == embedded.FOLDER
    with pytest.raises(BareloopError, match="no such folder"):
        find_tokenizer("./nowhere")


def test_an_incomplete_snapshot_is_completed(hub, load):
    endpoint, _ = hub
    weights = load("me/tiny", endpoint) / "model.safetensors"
    weights.unlink()
    load("me/tiny", endpoint)
    assert weights.exists()


def test_an_adapter_of_the_hub_is_a_model_and_an_adapter(hub, load):
    endpoint, handler = hub
    config = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "demo", "target_modules": ["q_proj"]})
    files = {"adapter_config.json": config.encode(), "adapter_model.safetensors": b"z" * 99, "optimizer.pt": b"x" * 99}
    handler.files.clear()
    handler.files.update(files)
    located = load("me/tiny", endpoint, locate)
    assert located.folder == find_model("demo")
    assert {path.name for path in located.adapter.iterdir()} == files.keys() - {"optimizer.pt"}
    handler.downloads.clear()
    assert load("me/tiny", endpoint, find_downloaded, HF_HUB_OFFLINE="1") == located.folder
    assert load("me/tiny", UNREACHABLE, locate) == located
    assert load("demo", UNREACHABLE, lambda name: locate(name, adapter="me/tiny")) == located
    assert handler.downloads == []


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "what is this?"])
def test_a_path_that_cannot_be_an_id_is_never_looked_up_on_the_hub(name):
    with pytest.raises(BareloopError, match="no such folder"):
        find_model(name)
