"""The middleware before the app: who may ask, and how much may be sent."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

from engine.runtime.errors import UsageError
from engine.serve.protocol.common import MAX_TEXT
from engine.serve.protocol.errors import ApiError
from engine.serve.security import MAX_KEY, Body, Large, Security

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("host", ["localhost:8000", "LOCALHOST", "127.0.0.1:1", "[::1]:8000", "[::1]"])
def test_localhost_is_allowed_by_any_name_and_port(host, call):
    assert call("GET", "/health", {"host": host}).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:8000", "localhost:8000@evil", "127.0.0.1.nip.io", "a b", "[::1"]
)
def test_other_hosts_are_refused_on_every_path(host, call):
    for path in ("/health", "/nothing", "/v1/models"):
        answer = call("GET", path, {"host": host})
        assert (answer.status, answer.error["code"]) == (403, "host_not_allowed")


def test_a_request_has_exactly_one_host(call):
    assert call("GET", "/health", [("host", None)]).status == 400
    assert call("GET", "/health", [("host", "localhost"), ("host", "evil.example")]).status == 400


def test_named_hosts_are_allowed_with_their_port_or_any(call):
    hosts = ["Box.example", "other.example:80", "fe80::1"]
    for host in ("box.example", "box.example:9", "other.example:80", "[fe80::1]:8000"):
        assert call("GET", "/health", {"host": host}, allowed_hosts=hosts).status == 200
    assert call("GET", "/health", {"host": "other.example:81"}, allowed_hosts=hosts).status == 403


@pytest.mark.parametrize("origin", ["http://localhost:8000", "http://127.0.0.1:8000", "http://[::1]:8000"])
def test_pages_of_the_server_itself_are_allowed_without_cors(origin, call):
    answer = call("GET", "/health", {"origin": origin})
    assert answer.status == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "origin", ["null", "http://localhost:3000", "https://localhost", "http://localhost", "https://evil.example", "*"]
)
def test_other_origins_are_refused_without_cors(origin, call):
    for method, path in (("GET", "/health"), ("POST", "/v1/echo"), ("OPTIONS", "/v1/echo")):
        answer = call(method, path, {"origin": origin, "access-control-request-method": "POST"} | JSON)
        assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_an_allowed_origin_gets_its_own_name_and_a_preflight(call):
    settings = {"allowed_origins": ["https://chat.example"], "keys": ["k"]}
    origin = {"origin": "https://chat.example"}
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}
    answer = call("OPTIONS", "/v1/echo", origin | asks, **settings)
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "https://chat.example"
    assert answer.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert "access-control-allow-credentials" not in answer.headers
    refused = call("GET", "/v1/models", origin, **settings)
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://chat.example")
    assert refused.headers["vary"] == "origin"
    assert call("GET", "/v1/models", {"origin": "https://other.example"}, **settings).status == 403


@pytest.mark.parametrize(
    "header",
    [
        {"authorization": "Bearer two"},
        {"authorization": "bearer  two "},
        {"x-api-key": "two"},
        {"authorization": "Bearer ", "x-api-key": "two"},
        {"authorization": "Basic abc", "x-api-key": "two"},
    ],
)
def test_each_configured_key_opens_in_either_header(header, call):
    assert call("GET", "/v1/models", header, keys=["one", "two"]).status == 200


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": "Bearer"},
        {"authorization": "one"},
        {"authorization": "Basic one"},
        {"authorization": "Bearer one two"},
        {"authorization": "Bearer on"},
        {"authorization": "Bearer \xfcne"},
        {"authorization": "Bearer " + "one" * MAX_KEY},
        {"x-api-key": ""},
        {"x-api-key": "One"},
    ],
)
def test_without_a_right_key_only_health_answers(header, call):
    for path in ("/v1/models", "/nothing", "/health/", "//health", "/openapi.json"):
        answer = call("GET", path, header, keys=["one", "two"])
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert call("GET", "/health", header, keys=["one", "two"]).status == 200


def test_two_authorization_headers_are_refused(call):
    pair = [("authorization", "Bearer one"), ("authorization", "Bearer no")]
    assert call("GET", "/v1/models", pair, keys=["one"]).status == 400


def test_without_keys_the_header_is_ignored_and_the_cache_is_one(call):
    for header in ({}, {"authorization": "Bearer "}, {"authorization": "Bearer x"}, {"x-api-key": "y"}):
        answer = call("GET", "/v1/models", header)
        assert (answer.status, json.loads(answer.body)["scope"]) == (200, None)


def test_each_key_has_its_own_scope_that_does_not_show_it(call):
    scopes = [
        json.loads(call("GET", "/v1/models", {"x-api-key": key}, keys=["secret-1", "secret-2"]).body)["scope"]
        for key in ("secret-1", "secret-2", "secret-1")
    ]
    assert scopes[0] == scopes[2] != scopes[1]
    assert all(scope and "secret" not in scope for scope in scopes)


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
def test_json_is_accepted(kind, call):
    answer = call("POST", "/v1/echo", {"content-type": kind}, [b"{", b"}"])
    assert (answer.status, json.loads(answer.body)["size"]) == (200, 2)


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "application/json; charset=latin-1",
    ],
)
def test_other_content_types_are_refused(kind, call):
    answer = call("POST", "/v1/echo", {"content-type": kind}, [b"{}"])
    assert (answer.status, answer.error["type"]) == (415, "invalid_request_error")


def test_a_compressed_body_is_refused_as_such(call):
    answer = call("POST", "/v1/echo", JSON | {"content-encoding": "gzip"}, [b"\x1f\x8b"])
    assert (answer.status, answer.headers["connection"]) == (415, "close")
    assert "'gzip'" in answer.error["message"]
    assert call("POST", "/v1/echo", JSON | {"content-encoding": "Identity"}, [b"{}"]).status == 200


def test_a_large_body_is_refused_by_its_declared_length_before_it_is_read(call):
    answer = call("POST", "/v1/echo", JSON | {"content-length": "101"}, chunks_end=False, max_body=100)
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert call("POST", "/v1/echo", JSON | {"content-length": "-1"}, chunks_end=False).status == 400


def test_the_bytes_that_arrive_are_counted(call):
    assert call("POST", "/v1/echo", JSON, [b"x" * 50, b"x" * 50], max_body=100).status == 200
    assert call("POST", "/v1/echo", JSON, [b"x" * 50, b"x" * 51], max_body=100).status == 413
    lied = JSON | {"content-length": "10"}
    assert call("POST", "/v1/echo", lied, [b"x" * 101], max_body=100).status == 413


def test_large_bodies_of_running_requests_are_limited_together(call):
    megabyte = b"x" * 1_000_000
    assert call("POST", "/v1/echo", JSON, [megabyte] * 4, max_bodies=2_000_000).status == 200
    answer = call("POST", "/v1/echo", JSON, [megabyte] * 5, max_bodies=2_000_000)
    assert (answer.status, answer.headers["retry-after"], answer.headers["connection"]) == (429, "1", "close")
    assert answer.error["code"] == "rate_limit_exceeded"
    assert call("POST", "/v1/echo", JSON, [megabyte] * 2, max_bodies=1).status == 200


def test_memory_of_a_large_body_is_free_once_its_request_has_ended():
    large, security = Large(10), Security()

    async def receive():
        return {"type": "http.request", "body": b"x" * (MAX_TEXT + 7), "more_body": False}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
    with Body(scope, receive, security, large) as body:
        asyncio.run(body.receive())
        assert large.used == 7
        with Body(scope, receive, security, large) as second, pytest.raises(ApiError, match="have 7 bytes in all"):
            asyncio.run(second.receive())
        assert large.used == 7
    assert large.used == 0


def test_a_body_that_does_not_arrive_is_given_up(call):
    answer = call("POST", "/v1/echo", JSON, [b"{"], chunks_end=False, read_timeout=0.01)
    assert (answer.status, answer.headers["connection"]) == (408, "close")


def test_no_body_is_read_for_what_does_not_exist(call):
    assert call("POST", "/nothing", {"content-length": "9999999"}).status == 404
    answer = call("POST", "/health", {"content-length": "9999999"})
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_a_request_id_is_repeated_if_it_is_short_and_printable(call):
    assert call("GET", "/health", {"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    others = [
        call("GET", "/nothing", {"x-request-id": each}).headers["x-request-id"] for each in ("x" * 129, "a b", "")
    ]
    assert len({*others}) == 3
    assert all(each.startswith("req_") for each in others)


def test_every_response_forbids_guessing_its_type(call):
    for method, path in (("GET", "/health"), ("GET", "/nothing"), ("POST", "/v1/echo"), ("GET", "/fail/secret")):
        assert call(method, path).headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keys": [""]}, "an API key is up to 4,096 ASCII characters without spaces, not 0"),
        ({"keys": ["a b"]}, "without spaces"),
        ({"allowed_hosts": ["http://box"]}, "'http://box' is not a host: use a name"),
        ({"allowed_origins": ["box"]}, "'box' is not an origin: use one such as https://chat.example"),
        ({"allowed_origins": ["*"]}, "is not an origin"),
    ],
)
def test_settings_that_would_protect_nothing_are_refused(settings, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        Security(**settings)


def test_keys_are_not_printed():
    assert "secret" not in repr(Security(keys=["secret"]))


def test_it_loads_without_torch_and_the_protocol_without_starlette():
    checks = {"engine.serve.protocol.openapi": {"torch", "starlette"}, "engine.serve.security": {"torch"}}
    for module, others in checks.items():
        code = f"import sys, {module}; sys.exit(bool({others} & sys.modules.keys()))"
        assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0
