"""Exceptions of the app, and refusals of its router, as errors in OpenAI's shape."""

from __future__ import annotations

import io
import logging

import pytest

from engine.serve.metrics import Metrics
from engine.serve.request_log import Observer
from tests.engine.serve.guarded_app import make_app, request


def test_refusals_of_the_router_have_the_shape_of_errors(call):
    assert call("GET", "/nothing").error == {
        "message": "there is no '/nothing': /openapi.json lists the paths",
        "type": "not_found_error",
        "param": None,
        "code": "not_found",
    }
    answer = call("DELETE", "/v1/echo")
    assert (answer.status, answer.headers["allow"], answer.error["code"]) == (405, "POST", "method_not_allowed")
    assert answer.headers["content-type"] == "application/json"


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
def test_exceptions_become_errors(kind, status, code, retry_after, caplog, call):
    answer = call("GET", f"/fail/{kind}")
    assert (answer.status, answer.error["code"], answer.headers.get("retry-after")) == (status, code, retry_after)
    is_fault = kind in ("memory", "secret")
    assert len(caplog.records) == is_fault
    assert not is_fault or f"GET '/fail/{kind}' req_" in caplog.text


def test_a_fault_is_logged_with_its_traceback_and_not_told(caplog, call):
    answer = call("GET", "/fail/secret")
    assert b"secret" not in answer.body
    assert "the secret of line 7" in caplog.text
    assert "Traceback" in caplog.text


def test_further_keys_of_an_error_are_sent(call):
    assert call("GET", "/fail/window").error["n_ctx"] == 256


def test_a_response_that_breaks_off_is_not_completed(call):
    with pytest.raises(RuntimeError, match="in the middle"):
        call("GET", "/stream")


def test_a_fault_after_the_response_is_logged(caplog, call):
    caplog.set_level(logging.ERROR)
    assert call("GET", "/later").status == 200
    assert caplog.text.count("RuntimeError: in the background") == 1


def test_what_is_refused_before_an_endpoint_reports_it_is_a_line_of_the_log():
    app, output = make_app(), io.StringIO()
    app.state.server.observer = Observer(Metrics([]), output=output)
    for path in ("/nothing", "/fail/usage", "/fail/secret"):
        request(app, "GET", path)
    first, second, third = output.getvalue().splitlines()
    assert "404  GET /nothing" in first and "/openapi.json lists the paths" in first
    assert "400  GET /fail/usage" in second and "top_p = 2: use less" in second
    assert "500  GET /fail/secret" in third
