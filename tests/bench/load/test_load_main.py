"""The program against a server on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import anyio
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bench.load import __main__ as program
from engine.cli.parser import run
from tests.bench.load.fake_server import event

KEY = "secret"


@contextlib.contextmanager
def server(answer: Callable[[dict, int], Response] | None = None) -> Iterator[str]:
    """A server that answers three tokens, or with `answer(body, number)`; yields its address."""
    bodies: list[dict] = []

    def stream(body: dict) -> StreamingResponse:
        chunks = [{"choices": [{"text": "a"}]}] * 3 + [{"choices": [{"text": "", "finish_reason": "length"}]}]
        usage = {"prompt_tokens": len(body["prompt"].split()) + 2, "completion_tokens": 3}
        events = [event(chunk) for chunk in [*chunks, {"choices": [], "usage": usage}]]
        return StreamingResponse(iter([*events, event(b"[DONE]")]), media_type="text/event-stream")

    async def complete(request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": {"message": "no such key"}}, 401)
        body = await request.json()
        bodies.append(body)
        result = answer(body, len(bodies) - 1) if answer else None
        return result or stream(body)

    async def models(_: Request) -> Response:
        return JSONResponse({"data": [{"id": "little"}]})

    async def tokenize(request: Request) -> Response:
        return JSONResponse({"tokens": [0] * len((await request.json())["prompt"].split())})

    routes = [
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/v1/models", models),
        Route("/tokenize", tokenize, methods=["POST"]),
    ]
    # With its protocol named, as asyncio sets TCP_NODELAY only then, and each answer takes 40 ms without.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    config = uvicorn.Config(Starlette(routes=routes), log_level="critical", timeout_graceful_shutdown=1)
    instance = uvicorn.Server(config)
    thread = threading.Thread(target=instance.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        instance.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("BARELOOP_API_KEY", KEY)


def status_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        run(program.parser(), program.main, arguments)
    return end.value.code


def test_every_setting_is_measured_and_shown_again_from_the_file(tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(program, "draw", lambda runs, path: drawn.append((len(runs), path)))
    sizes = ["--input-tokens", "20", "--output-tokens", "3", "--requests", "4"]
    output = ["--json", str(tmp_path / "run.json")]
    with server() as url:
        assert status_of("--url", url, "--concurrency", "1", "3", "--rate", "1000", *sizes, *output) == 0
    shown = capsys.readouterr()
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["model"] == "little" and content["options"]["seed"] == 0
    records = [record for setting in content["settings"] for record in setting["records"]]
    assert len(records) == 12 and {record["status"] for record in records} == {"ok"}
    assert {(record["prompt_tokens"], record["completion_tokens"], len(record["chunks"])) for record in records} == {
        (20, 3, 3)
    }
    assert "1000/s" in shown.out and "20 in, 3 out" in shown.err
    assert status_of("--from", str(tmp_path / "run.json"), "--plot", str(tmp_path / "picture.png")) == 0
    assert capsys.readouterr().out == shown.out
    assert status_of("--from", str(tmp_path / "run.json"), "--ttft-target", "1e-9") == 0
    assert "TTFT ≤ 1e-09 s" in capsys.readouterr().out  # and nothing meets it
    assert drawn == [(1, tmp_path / "picture")]


def test_errors_are_counted_and_the_rest_is_measured(capsys):
    def answer(_: dict, number: int) -> Response | None:
        return JSONResponse({"error": {"message": "too many"}}, 429) if number % 2 else None

    with server(answer) as url:
        assert status_of("--url", url, "--concurrency", "1", "--requests", "5") == 0
    shown = capsys.readouterr()
    assert "429 (3)" in shown.out and '429: "too many"' in shown.err


def test_ctrl_c_shows_what_is_there_and_ends_with_130(tmp_path, capsys):
    def answer(_: dict, number: int) -> Response | None:
        if number < 3:
            return None
        os.kill(os.getpid(), signal.SIGINT)

        async def never():
            await anyio.sleep_forever()
            yield b""

        return StreamingResponse(never())

    with server(answer) as url:
        arguments = ["--url", url, "--concurrency", "1", "2", "--requests", "8", "--json", str(tmp_path / "run.json")]
        assert status_of(*arguments) == 130
    shown = capsys.readouterr()
    assert re.search(r"│ +1 │ +2 │ +0 │", shown.out) and shown.err.splitlines()[-1].endswith(
        "without an answer are not counted"
    )
    (setting,) = json.loads((tmp_path / "run.json").read_text())["settings"]
    assert len(setting["records"]) == 2


def test_a_refused_key_a_missing_server_and_impossible_flags_are_one_line(tmp_path, capsys):
    def error(*arguments: str, status: int) -> str:
        assert status_of(*arguments) == status
        (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warming up")]
        return line

    (tmp_path / "key").write_text("wrong\n")
    with server() as url:
        assert '401: "no such key"' in error("--url", url, "--api-key-file", str(tmp_path / "key"), status=1)
    assert "cannot reach http://127.0.0.1:1: " in error("--url", "http://127.0.0.1:1", status=1)
    assert "--from" in error(status=2)
    url = "http://127.0.0.1:1"
    assert "--rate 0.0: use more than 0" in error("--url", url, "--rate", "0", status=2)
    assert "--duration nan" in error("--url", url, "--duration", "nan", status=2)
    assert "--shared-prefix 256" in error("--url", url, "--shared-prefix", "256", status=2)
    assert "cannot read the key" in error(
        "--url", url, "--model", "m", "--api-key-file", str(tmp_path / "no"), status=1
    )
    assert "not allowed with" in error("--url", url, "--duration", "1", "--requests", "1", status=2)


def test_a_setting_of_some_seconds_ends(capsys):
    with server() as url:
        assert status_of("--url", url, "--concurrency", "2", "--duration", "0.05") == 0
    assert "2 clients" in capsys.readouterr().err


def test_the_number_of_requests_grows_with_the_clients():
    def plan(*arguments: str) -> list[tuple[str, int | None, float | None]]:
        settings = program.settings_of(program.parser().parse_args(list(arguments)))
        return [(setting.label, limit.requests, limit.seconds) for setting, limit in settings]

    assert plan() == [("1 client", 8, None), ("4 clients", 16, None), ("16 clients", 64, None)]
    assert plan("--rate", "0.5", "2") == [("0.5/s", 32, None), ("2/s", 32, None)]
    assert plan("--rate", "2", "--concurrency", "3", "--duration", "9") == [("3 clients", None, 9), ("2/s", None, 9)]
