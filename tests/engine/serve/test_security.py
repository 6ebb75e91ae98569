"""The middleware before the app, called by the ASGI protocol itself, and the responses to what the app raises."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from engine.decoding.scheduling.request import QueueFullError
from engine.runtime.errors import BareloopError, UsageError
from engine.serve.failures import any_error, api_error, http_exception
from engine.serve.protocol.errors import ApiError, unavailable
from engine.serve.security import MAX_KEY, Guard, Security

JSON = {"content-type": "application/json"}
RAISED = {
    "api": ApiError(418, "short and stout", param="pot", code="teapot"),
    "usage": UsageError("top_p = 2: use less"),
    "full": QueueFullError("8 requests are waiting"),
    "memory": MemoryError("no more"),
    "window": ApiError(400, "too long", code="context_length_exceeded", extra={"n_ctx": 256}),
    "draining": unavailable("the server is stopping"),
    "secret": RuntimeError("the secret of line 7"),
}


@dataclass
class Answer:
    """A response, in parts."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def error(self):
        return json.loads(self.body)["error"]


def make_app():
    async def echo(request):
        return JSONResponse({"size": len(await request.body()), "scope": request.state.scope})

    async def fail(request):
        raise RAISED[request.path_params["kind"]]

    async def get(request):
        return JSONResponse({"scope": request.state.scope})

    async def break_off(request):
        async def pieces():
            yield b"data: 1\n\n"
            raise RuntimeError("in the middle")

        return StreamingResponse(pieces())

    async def fail_later(request):
        async def task():
            raise RuntimeError("in the background")

        return JSONResponse({}, background=BackgroundTask(task))

    routes = [
        Route("/v1/echo", echo, methods=["POST"]),
        Route("/health", get),
        Route("/v1/models", get),
        Route("/fail/{kind}", fail),
        Route("/stream", break_off),
        Route("/later", fail_later),
    ]
    handlers = {HTTPException: http_exception, ApiError: api_error, BareloopError: api_error, Exception: any_error}
    return Starlette(routes=routes, exception_handlers=handlers)


APP = make_app()


def call(method, path, headers=(), body=(), app=APP, chunks_end=True, **security):
    """One request. `headers`: a mapping or pairs; Host is localhost:8000 unless given."""
    pairs = [*(headers.items() if isinstance(headers, dict) else headers)]
    if "host" not in dict(pairs):
        pairs.insert(0, ("host", "localhost:8000"))
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in body]
    if chunks_end:
        messages.append({"type": "http.request", "body": b"", "more_body": False})
    answer = Answer()

    async def receive():
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def send(message):
        if message["type"] == "http.response.start":
            names = [name.decode() for name, _ in message["headers"]]
            assert len(names) == len({*names})
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in pairs if value is not None],
        "scheme": "http",
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
    }
    asyncio.run(asyncio.wait_for(Guard(app, Security(**security))(scope, receive, send), 60))
    return answer


@pytest.mark.parametrize("host", ["localhost:8000", "LOCALHOST", "127.0.0.1:1", "[::1]:8000", "[::1]"])
def test_localhost_is_allowed_by_any_name_and_port(host):
    assert call("GET", "/health", {"host": host}).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:8000", "localhost:8000@evil", "127.0.0.1.nip.io", "a b", "[::1"]
)
def test_other_hosts_are_refused_on_every_path(host):
    for path in ("/health", "/nothing", "/v1/models"):
        answer = call("GET", path, {"host": host})
        assert (answer.status, answer.error["code"]) == (403, "host_not_allowed")


def test_a_request_has_exactly_one_host():
    assert call("GET", "/health", [("host", None)]).status == 400
    assert call("GET", "/health", [("host", "localhost"), ("host", "evil.example")]).status == 400


def test_named_hosts_are_allowed_with_their_port_or_any():
    hosts = ["Box.example", "other.example:80", "fe80::1"]
    for host in ("box.example", "box.example:9", "other.example:80", "[fe80::1]:8000"):
        assert call("GET", "/health", {"host": host}, allowed_hosts=hosts).status == 200
    assert call("GET", "/health", {"host": "other.example:81"}, allowed_hosts=hosts).status == 403


@pytest.mark.parametrize("origin", ["http://localhost:8000", "http://127.0.0.1:8000", "http://[::1]:8000"])
def test_pages_of_the_server_itself_are_allowed_without_cors(origin):
    answer = call("GET", "/health", {"origin": origin})
    assert answer.status == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "origin", ["null", "http://localhost:3000", "https://localhost", "http://localhost", "https://evil.example", "*"]
)
def test_other_origins_are_refused_without_cors(origin):
    for method, path in (("GET", "/health"), ("POST", "/v1/echo"), ("OPTIONS", "/v1/echo")):
        answer = call(method, path, {"origin": origin, "access-control-request-method": "POST"} | JSON)
        assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_an_allowed_origin_gets_its_own_name_and_a_preflight():
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
def test_each_configured_key_opens_in_either_header(header):
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
def test_without_a_right_key_only_health_answers(header):
    for path in ("/v1/models", "/nothing", "/health/", "//health", "/openapi.json"):
        answer = call("GET", path, header, keys=["one", "two"])
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert call("GET", "/health", header, keys=["one", "two"]).status == 200


def test_two_authorization_headers_are_refused():
    pair = [("authorization", "Bearer one"), ("authorization", "Bearer no")]
    assert call("GET", "/v1/models", pair, keys=["one"]).status == 400


def test_without_keys_the_header_is_ignored_and_the_cache_is_one():
    for header in ({}, {"authorization": "Bearer "}, {"authorization": "Bearer x"}, {"x-api-key": "y"}):
        answer = call("GET", "/v1/models", header)
        assert (answer.status, json.loads(answer.body)["scope"]) == (200, None)


def test_each_key_has_its_own_scope_that_does_not_show_it():
    scopes = [
        json.loads(call("GET", "/v1/models", {"x-api-key": key}, keys=["secret-1", "secret-2"]).body)["scope"]
        for key in ("secret-1", "secret-2", "secret-1")
    ]
    assert scopes[0] == scopes[2] != scopes[1]
    assert all(scope and "secret" not in scope for scope in scopes)


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
def test_json_is_accepted(kind):
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
def test_other_content_types_are_refused(kind):
    answer = call("POST", "/v1/echo", {"content-type": kind}, [b"{}"])
    assert (answer.status, answer.error["type"]) == (415, "invalid_request_error")


def test_a_large_body_is_refused_by_its_declared_length_before_it_is_read():
    answer = call("POST", "/v1/echo", JSON | {"content-length": "101"}, chunks_end=False, max_body=100)
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert call("POST", "/v1/echo", JSON | {"content-length": "-1"}, chunks_end=False).status == 400


def test_the_bytes_that_arrive_are_counted():
    assert call("POST", "/v1/echo", JSON, [b"x" * 50, b"x" * 50], max_body=100).status == 200
    assert call("POST", "/v1/echo", JSON, [b"x" * 50, b"x" * 51], max_body=100).status == 413
    lied = JSON | {"content-length": "10"}
    assert call("POST", "/v1/echo", lied, [b"x" * 101], max_body=100).status == 413


def test_a_body_that_does_not_arrive_is_given_up():
    answer = call("POST", "/v1/echo", JSON, [b"{"], chunks_end=False, read_timeout=0.01)
    assert (answer.status, answer.headers["connection"]) == (408, "close")


def test_no_body_is_read_for_what_does_not_exist():
    assert call("POST", "/nothing", {"content-length": "9999999"}).status == 404
    answer = call("POST", "/health", {"content-length": "9999999"})
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_refusals_of_the_router_have_the_shape_of_errors():
    assert call("GET", "/nothing").error == {
        "message": "there is no '/nothing': /openapi.json lists the paths",
        "type": "not_found_error",
        "param": None,
        "code": "not_found",
    }
    answer = call("DELETE", "/v1/echo")
    assert (answer.status, answer.headers["allow"], answer.error["code"]) == (405, "POST", "method_not_allowed")
    assert answer.headers["content-type"] == "application/json"


def test_a_request_id_is_repeated_if_it_is_short_and_printable():
    assert call("GET", "/health", {"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    others = [
        call("GET", "/nothing", {"x-request-id": each}).headers["x-request-id"] for each in ("x" * 129, "a b", "")
    ]
    assert len({*others}) == 3
    assert all(each.startswith("req_") for each in others)


def test_every_response_forbids_guessing_its_type():
    for method, path in (("GET", "/health"), ("GET", "/nothing"), ("POST", "/v1/echo"), ("GET", "/fail/secret")):
        assert call(method, path).headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("kind", "status", "code", "retry_after"),
    [
        ("api", 418, "teapot", None),
        ("usage", 400, None, None),
        ("full", 429, "rate_limit_exceeded", "1"),
        ("memory", 503, "out_of_memory", "5"),
        ("window", 400, "context_length_exceeded", None),
        ("draining", 503, 503, None),
        ("secret", 500, "internal_error", None),
    ],
)
def test_exceptions_become_errors(kind, status, code, retry_after, caplog):
    answer = call("GET", f"/fail/{kind}")
    assert (answer.status, answer.error["code"], answer.headers.get("retry-after")) == (status, code, retry_after)
    is_fault = kind in ("memory", "secret")
    assert len(caplog.records) == is_fault
    assert not is_fault or f"GET '/fail/{kind}' req_" in caplog.text


def test_a_fault_is_logged_with_its_traceback_and_not_told(caplog):
    answer = call("GET", "/fail/secret")
    assert b"secret" not in answer.body
    assert "the secret of line 7" in caplog.text
    assert "Traceback" in caplog.text


def test_further_keys_of_an_error_are_sent():
    assert call("GET", "/fail/window").error["n_ctx"] == 256


def test_a_response_that_breaks_off_is_not_completed():
    with pytest.raises(RuntimeError, match="in the middle"):
        call("GET", "/stream")


def test_a_fault_after_the_response_is_logged(caplog):
    caplog.set_level(logging.ERROR)
    assert call("GET", "/later").status == 200
    assert caplog.text.count("RuntimeError: in the background") == 1


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
