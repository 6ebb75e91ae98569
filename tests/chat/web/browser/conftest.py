"""A browser, and tabs of the page in it that have reported no error when a test ends."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.chat.web.browser.tab import Browser, Playwright, Tab

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESKTOP = {"width": 1280, "height": 800}


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's program; tests are skipped without one, unless it is required."""
    from tests.chat.web.browser.tab import IS_REQUIRED

    found = os.environ.get("BARELOOP_CHROMIUM") or shutil.which("chromium")
    if found is None:
        (pytest.fail if IS_REQUIRED else pytest.skip)("needs chromium; see CONTRIBUTING.md")
    return found


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """Playwright. It has an event loop in this thread, which tests of other modules must not find."""
    from tests.chat.web.browser.tab import sync_playwright

    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def chromium_browser(chromium, playwright) -> Iterator[Browser]:
    browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
    yield browser
    browser.close()


@pytest.fixture
def open_tab(chromium_browser, page) -> Iterator[Callable[..., Tab]]:
    """Opens tabs of the page: all in one browser, or in one with other properties, such as `viewport`."""
    from tests.chat.web.browser.tab import PATIENCE, Tab

    tabs: list[Tab] = []
    contexts: dict[str, Any] = {}

    def open_one(path: str = "", **properties: Any) -> Tab:
        context = contexts.get(repr(properties))
        if context is None:
            context = chromium_browser.new_context(**{"viewport": DESKTOP, "locale": "en-GB"} | properties)
            context.set_default_timeout(PATIENCE)
            contexts[repr(properties)] = context
        tabs.append(Tab(context.new_page(), page.base, properties.get("has_touch", False)))
        tabs[-1].open(page.url + path)
        return tabs[-1]

    yield open_one
    page.script.go()
    problems = [problem for tab in tabs for problem in tab.problems]
    for context in contexts.values():
        context.close()
    assert problems == []


@pytest.fixture
def tab(open_tab) -> Tab:
    """A tab with a new conversation."""
    return open_tab()
