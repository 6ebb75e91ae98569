"""Clients that leave, read slowly or wait too long: what they leave behind, and what others notice."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest

from engine.runtime.errors import BareloopError
from engine.serve import server

BODY = {"prompt": "The sun is", "max_tokens": 900, "ignore_eos": True, "temperature": 0}


def wait_until(condition) -> None:
    """Wait for something that has to come. The limit only ends a test that hangs."""
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.002)


def is_idle(running) -> bool:
    """Whether no request runs or waits."""
    return not len(running.scheduler.running) and not running.scheduler.queue


@pytest.fixture
def gate(running, monkeypatch) -> Iterator[threading.Semaphore]:
    """The server computes a token whenever this is released."""
    wait_until(lambda: is_idle(running))  # what earlier tests have left
    permits = threading.Semaphore(0)
    decode = running.scheduler.running.decode
    is_open = threading.Event()

    def step():
        while not is_open.is_set() and not permits.acquire(timeout=0.02):
            pass
        return decode()

    monkeypatch.setattr(running.scheduler.running, "decode", step)
    yield permits
    is_open.set()


def fill(running, gate, rows: int) -> None:
    """Let the server compute until so many requests have rows."""

    def are_running() -> bool:
        gate.release()
        return len(running.scheduler.running) == rows

    wait_until(are_running)


def connect(running, path: str, body: dict) -> socket.socket:
    """Send a request over a socket of our own."""
    content = json.dumps(body).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, _, port = running.url.removeprefix("http://").partition(":")
    connection.connect((host, int(port)))
    head = (f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json")
    connection.sendall("\r\n".join([*head, f"content-length: {len(content)}", "\r\n"]).encode() + content)
    return connection


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_frees_its_rows_within_a_step(running, gate, stream, n):
    connection = connect(running, "/v1/completions", BODY | {"stream": stream, "n": n})
    fill(running, gate, n)
    requests = [*running.scheduler.running]
    connection.close()
    wait_until(lambda: all(request.is_cancelled for request in requests))
    computed = [request.completion_tokens for request in requests]
    gate.release(100)
    wait_until(lambda: len(running.scheduler.running) == 0)
    assert all(request.completion_tokens <= before + 1 for request, before in zip(requests, computed, strict=True))


def test_after_120_clients_that_leave_the_next_is_served(running, gate, client):
    connections = [connect(running, "/v1/completions", BODY | {"stream": number % 2 > 0}) for number in range(120)]
    scheduler = running.scheduler
    fill(running, gate, scheduler.max_rows)
    for connection in connections:
        connection.close()
    gate.release(1000)
    assert client.post("/v1/completions", json=BODY | {"max_tokens": 2}).json()["usage"]["completion_tokens"] == 2
    wait_until(lambda: is_idle(running))


@pytest.mark.parametrize("head", [b"", b"G", b"GET /health HTTP/1.1\r\nhost: local"])
def test_headers_that_do_not_arrive_are_given_up(running, monkeypatch, head):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.01)
    connection = socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])), timeout=60)
    connection.sendall(head)
    assert connection.recv(4096) == b""


def test_headers_of_a_second_request_that_do_not_arrive_are_given_up(running, monkeypatch):
    connection = socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])), timeout=60)
    connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(4096)
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.01)
    connection.sendall(b"GET /health")
    assert connection.recv(4096) == b""


def test_requests_on_one_connection_are_answered_in_order(running):
    connection = connect(running, "/v1/completions", BODY | {"max_tokens": 1})
    connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" * 2)
    connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    answers = b"".join(iter(lambda: connection.recv(4096), b"")).split(b"HTTP/1.1 200 OK")
    assert [b"text_completion" in each for each in answers] == [False, True, False, False, False]
    assert b'"object":"list"' in answers[-1]


def test_a_waiting_request_whose_client_leaves_never_runs(running, gate):
    scheduler = running.scheduler
    first = [connect(running, "/v1/completions", BODY | {"n": scheduler.max_rows})]
    fill(running, gate, scheduler.max_rows)
    first.append(connect(running, "/v1/completions", BODY))
    wait_until(lambda: len(scheduler.queue) == 1)
    (waiting,) = scheduler.queue
    first[1].close()
    wait_until(lambda: waiting.is_cancelled)
    first[0].close()
    gate.release(100)
    wait_until(lambda: waiting.is_finished and not len(scheduler.running))
    assert waiting.completion_tokens == 0


def test_a_slow_reader_pauses_only_itself(running, client):
    connection = connect(running, "/v1/completions", BODY | {"stream": True, "n": 2, "logprobs": 20})
    scheduler = running.scheduler
    wait_until(lambda: any(request.is_paused for request in scheduler.running))
    answer = client.post("/v1/completions", json=BODY | {"max_tokens": 3})
    assert answer.json()["usage"]["completion_tokens"] == 3
    connection.close()
    wait_until(lambda: len(scheduler.running) == 0)


def test_a_full_queue_is_429_and_says_when_to_try_again(running, gate, client, monkeypatch):
    scheduler = running.scheduler
    connections = [connect(running, "/v1/completions", BODY | {"n": scheduler.max_rows})]
    fill(running, gate, scheduler.max_rows)
    monkeypatch.setattr(scheduler, "max_queue", 1)
    connections.append(connect(running, "/v1/completions", BODY))
    wait_until(lambda: len(scheduler.queue) == 1)
    answer = client.post("/v1/completions", json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(answer.headers["retry-after"]) >= 1
    for connection in connections:
        connection.close()
    gate.release(100)
    wait_until(lambda: is_idle(running))


def test_a_fault_in_mid_stream_is_an_event_and_the_next_request_works(running, client, monkeypatch):
    logits = running.scheduler.running.pipeline.logits
    calls = []

    def fail(replies):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("secret detail")
        return logits(replies)

    monkeypatch.setattr(running.scheduler.running.pipeline, "logits", fail)
    text = client.post("/v1/completions", json=BODY | {"stream": True}).text
    assert '"error"' in text and "secret detail" not in text and "[DONE]" not in text
    assert client.post("/v1/completions", json=BODY | {"max_tokens": 2}).status_code == 200


def test_an_answer_that_takes_too_long_is_refused_without_a_retry(running, gate, client, monkeypatch):
    monkeypatch.setattr(running.state, "limits", type(running.state.limits)(timeout=0.2))
    answer = client.post("/v1/completions", json=BODY)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "false")
    gate.release(100)
    wait_until(lambda: len(running.scheduler.running) == 0)


def test_an_idle_stream_is_kept_alive(running, gate, monkeypatch):
    monkeypatch.setattr(running.state, "limits", type(running.state.limits)(ping_seconds=0.05))
    with (
        httpx2.Client(base_url=running.url, timeout=60) as client,
        client.stream("POST", "/v1/completions", json=BODY | {"stream": True}) as answer,
    ):
        assert any(line == ": ping" for line in answer.iter_lines())


def test_a_reply_that_cannot_be_computed_is_a_fault_of_the_server(running, client, monkeypatch):
    def fail(replies):
        raise BareloopError("the logits are not finite numbers")

    monkeypatch.setattr(running.scheduler.running.pipeline, "logits", fail)
    answer = client.post("/v1/completions", json=BODY)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (500, "false")
    assert "not finite" in answer.json()["error"]["message"]


def test_more_choices_than_ever_fit_are_refused_for_good(running, client, monkeypatch):
    monkeypatch.setattr(running.scheduler, "max_queue", 1)
    answer = client.post("/v1/completions", json=BODY | {"n": 34})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
