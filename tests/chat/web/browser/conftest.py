"""A browser, and tabs of the page in it that have reported no error when a test ends."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from starlette.responses import HTMLResponse

from tests.chat.web.scripted import RunningPage

if TYPE_CHECKING:
    from tests.chat.web.browser.tab import Browser, Tab, Tabs

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's program; tests are skipped without one, unless it is required."""
    from tests.chat.web.browser.tab import IS_REQUIRED

    found = os.environ.get("BARELOOP_CHROMIUM") or shutil.which("chromium")
    if found is None:
        (pytest.fail if IS_REQUIRED else pytest.skip)("needs chromium; see CONTRIBUTING.md")
    return found


@pytest.fixture(scope="session")
def started_browser(chromium) -> Iterator[tuple[Browser, asyncio.AbstractEventLoop]]:
    """The browser, and Playwright's event loop in this thread, which other tests must not find running."""
    from tests.chat.web.browser.tab import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        loop = asyncio.get_running_loop()
        asyncio._set_running_loop(None)
        yield browser, loop
        asyncio._set_running_loop(loop)
        browser.close()


@pytest.fixture
def chromium_browser(started_browser) -> Iterator[Browser]:
    """The browser of all tests."""
    browser, loop = started_browser
    asyncio._set_running_loop(loop)
    yield browser
    asyncio._set_running_loop(None)


@pytest.fixture(scope="session")
def all_tabs(started_browser) -> Tabs:
    """Tabs that tests have left."""
    from tests.chat.web.browser.tab import Tabs

    return Tabs(started_browser[0])


class LastingPage(RunningPage):
    """A server of which the browser keeps the files; to ask for each whether it has changed would take half a test."""

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        from tests.chat.web.browser.tab import BLANK

        if scope["path"] == BLANK:  # with an icon, as the browser asks for /favicon.ico otherwise
            headers = {"cross-origin-opener-policy": "same-origin"}  # as the page: else it gets another process
            await HTMLResponse('<link rel="icon" href="data:,">', headers=headers)(scope, receive, send)
            return

        async def send_lasting(message: Any) -> None:
            if message["type"] == "http.response.start" and scope["path"].startswith("/static/"):
                kept = [(name, value) for name, value in message["headers"] if name != b"cache-control"]
                message = message | {"headers": [*kept, (b"cache-control", b"max-age=3600")]}
            await send(message)

        await super()._answer(scope, receive, send_lasting)


@pytest.fixture(scope="session")
def servers() -> Iterator[list[RunningPage]]:
    """Servers of the page; the last one may be running."""
    pages: list[RunningPage] = []
    yield pages
    for page in pages:
        page.close()


@pytest.fixture
def page(data, servers) -> Iterator[RunningPage]:
    """A server without conversations. It stays for the next test: for another one the browser would load all files."""
    if servers and servers[-1].is_running:
        servers[-1].begin_again()
    else:
        servers.append(LastingPage())
    page = servers[-1]
    yield page
    page.script.go()
    if page.is_running:
        page.leave()


@pytest.fixture
def open_tab(chromium_browser, all_tabs, page) -> Iterator[Callable[..., Tab]]:
    """Opens tabs of the page: all in one browser, or in one with other properties, such as `viewport`."""
    tabs: list[tuple[Tab, dict[str, Any]]] = []

    def open_one(path: str = "", **properties: Any) -> Tab:
        tab = all_tabs.take(page.base, **properties)
        tabs.append((tab, properties))
        tab.open(page.url + path)
        return tab

    yield open_one
    page.script.go()
    problems = [problem for tab, _ in tabs for problem in tab.problems]
    for tab, properties in tabs:
        all_tabs.give_back(tab, **properties)
    assert problems == []


@pytest.fixture
def tab(open_tab) -> Tab:
    """A tab with a new conversation."""
    return open_tab()
