"""Who gets in, and what every response says."""

from __future__ import annotations

import stat

import httpx2
import pytest

from chat.web.access import page_key
from tests.chat.web.scripted import KEY


@pytest.fixture
def stranger(page):
    with httpx2.Client(base_url=page.base, timeout=60) as client:
        yield client


def test_the_address_with_the_key_opens_the_page(page, stranger):
    answer = stranger.get(f"/?key={KEY}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    name, *attributes = answer.headers["set-cookie"].split("; ")
    assert name == f"bareloop-{page.port}={KEY}"
    assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(attributes)
    answer = stranger.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("key", ["", "wrong", "ü", KEY[:-1], f"{KEY}0"])
def test_without_the_key_there_is_nothing(stranger, key):
    if key:
        answer = stranger.get("/", params={"key": key})
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
    answer = stranger.get("/")
    assert answer.status_code == 401
    assert "python -m chat --web" in answer.text
    assert "refresh" not in answer.text
    for path in ("/web/state", "/web/conversations", "/web/events", "/static/app.mjs", "/static/none", "/nothing"):
        assert stranger.get(path).json()["error"]["message"].startswith("open the address")
    assert stranger.post("/web/conversations", json={}).status_code == 401
    assert stranger.get("/health").json() == {"status": "ok"}


def test_a_link_on_another_site_tries_again_as_browsers_withhold_the_cookie_then(stranger):
    assert 'http-equiv="refresh"' in stranger.get("/", headers={"sec-fetch-site": "cross-site"}).text


def test_other_hosts_and_origins_are_refused(page, browser):
    http = browser.http
    assert http.get("/web/state", headers={"host": "evil.example"}).status_code == 403
    for origin in ("http://evil.example", f"http://127.0.0.1:{page.port + 1}", "null"):
        answer = http.post("/web/conversations", json={}, headers={"origin": origin})
        assert answer.status_code == 403, origin
    assert http.post("/web/conversations", json={}, headers={"origin": page.base}).status_code == 200
    assert http.post("/web/conversations", data={"a": "b"}).status_code == 415
    assert http.get(f"/web/conversations/{browser.new()}/delete").status_code == 405


@pytest.mark.parametrize("path", ["/", "/static/app.mjs", "/web/state", "/web/nothing", "/?key=wrong"])
def test_every_response_has_the_headers(browser, path):
    headers = browser.http.get(path).headers
    policy = headers["content-security-policy"].split("; ")
    assert {"default-src 'self'", "img-src 'self' data:", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy)
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"


def test_files_are_checked_again_and_not_sent_again(browser):
    answer = browser.http.get("/static/app.mjs")
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    again = browser.http.get("/static/app.mjs", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "name", ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "index.html", "vendor", "/etc/passwd", "x"]
)
def test_only_files_of_the_page_are_served(browser, name):
    assert browser.http.get(f"/static/{name}").status_code == 404


def test_the_key_is_kept_in_a_private_file(data):
    key = page_key(may_write=True)
    assert len(key) >= 24
    assert page_key(may_write=True) == key
    path = data / "page-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)  # others may have read it
    assert page_key(may_write=True) != key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("short")
    assert len(page_key(may_write=True)) >= 24


def test_without_saving_the_key_is_not_written(data):
    assert page_key(may_write=False) != page_key(may_write=False)
    assert not data.exists()
    key = page_key(may_write=True)
    assert page_key(may_write=False) == key


@pytest.mark.parametrize("foreign", ["other=a b", 'prefs={"a": 1, "b": "x y"}', "n\xe4me=\xfc", "=", ";;", "a=[1,2]"])
def test_cookies_of_others_that_are_against_the_rules_lock_nobody_out(page, stranger, foreign):
    for cookie in (f"{foreign}; bareloop-{page.port}={KEY}", f"bareloop-{page.port}={KEY}; {foreign}"):
        assert stranger.get("/web/state", headers={"cookie": cookie.encode("latin-1")}).status_code == 200
    assert stranger.get("/web/state", headers={"cookie": f"{foreign}".encode("latin-1")}).status_code == 401


@pytest.mark.parametrize(
    "body", [b'{"model": "\xed\xa0\x80"}', b'{"model": "\\ud800"}', '{"model": "x"}'.encode("utf-16")]
)
def test_a_body_is_json_in_utf_8(browser, body):
    answer = browser.http.post("/web/conversations", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "the body is not JSON in UTF-8" in answer.json()["error"]["message"]
