"""A tab of the page as a user sees it: found by roles and names, with all that goes wrong in it noted."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

IS_REQUIRED = bool(os.environ.get("CI") or os.environ.get("BARELOOP_CHROMIUM"))
if not IS_REQUIRED:
    pytest.importorskip("playwright.sync_api", reason="needs playwright")

from playwright.sync_api import (  # noqa: E402
    Browser,
    BrowserContext,
    ConsoleMessage,
    Error,
    Locator,
    Page,
    Request,
    expect,
    sync_playwright,
)

__all__ = ["IS_REQUIRED", "PATIENCE", "Browser", "Locator", "Page", "Tab", "Tabs", "expect", "sync_playwright"]

PATIENCE = 60_000  # milliseconds that a busy machine may take
BLANK = "/blank"  # of servers whose tabs are kept for other tests
DESKTOP = {"width": 1280, "height": 800}
expect.set_options(timeout=PATIENCE)


# The next command has ended when its answer and then a snapshot have come.
ANSWERED = """() => {
  let told = false;
  const pane = document.querySelector("main > section");
  window.answered = new Promise((resolve) => pane.addEventListener("event", ({ detail }) => {
    if (detail.type === "notice") told = true;
    else if (detail.type === "snapshot" && told) resolve();
  }));
}"""


class Tab:
    """One tab. `problems`: errors of scripts and of the console, and requests to another host."""

    _front: Tab | None = None  # of all tabs

    def __init__(self, page: Page, base: str, is_touched: bool = False) -> None:
        """`is_touched`: there is no Enter that sends."""
        self._page, self.base, self.is_touched = page, base, is_touched
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._expected: list[re.Pattern[str]] = []
        self._handlers: dict[Any, Any] = {
            "console": self._console,
            "pageerror": lambda error: self._note(f"script: {error}"),
            "request": self._request,
            "popup": lambda popup: self._note(f"a window was opened: {popup.url}"),
        }
        for event, handler in self._handlers.items():
            page.on(event, handler)

    def leave(self) -> Page | None:
        """Forget all that belongs to one test. -> the page for another one, if it can be kept"""
        for event, handler in self._handlers.items():
            self._page.remove_listener(event, handler)
        if self._page.is_closed():
            return None
        page = self.page
        try:
            page.unroute_all()
            page.mouse.move(0, 0)
            page.emulate_media(color_scheme="light", reduced_motion="no-preference")
            answer = page.goto(f"{self.base}{BLANK}")  # without scripts that could store anything
            page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
            is_blank = answer is not None and answer.ok
        except Error:
            is_blank = False  # the test has ended the server
        if not is_blank:
            page.close()
        return None if page.is_closed() else page

    @property
    def page(self) -> Page:
        """The page, in front of other tabs: what is behind is drawn once a second."""
        if Tab._front is not self:
            Tab._front = self
            self._page.bring_to_front()
        return self._page

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._note(f"console: {message.text} {message.location.get('url', '')}")

    def _request(self, request: Request) -> None:
        self.requests.append(request.url)
        if not request.url.startswith((self.base, "data:", "blob:")):
            self._note(f"request: {request.url}")

    def _note(self, problem: str) -> None:
        if not any(pattern.search(problem) for pattern in self._expected):
            self.problems.append(problem)

    def expect_problem(self, pattern: str) -> None:
        """From now on a problem like this is none."""
        self._expected.append(re.compile(pattern))

    def open(self, address: str) -> None:
        """Go to an address of the page, and wait until messages can be written."""
        self.page.goto(address)
        expect(self.composer).to_be_visible()

    @property
    def composer(self) -> Locator:
        return self.page.get_by_role("textbox", name="Message", exact=True)

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def send(self, text: str) -> None:
        """Write a message or a command, and send it."""
        self.composer.fill(text)
        if self.is_touched:
            self.button("Send").tap()
        else:
            self.composer.press("Enter")

    def command(self, line: str) -> None:
        """Send a command that answers something, and wait for its end: then another line is taken."""
        self.page.evaluate(ANSWERED)
        self.send(line)
        self.page.evaluate("() => window.answered")

    def turn(self, number: int) -> Locator:
        """A turn, counted from 1."""
        return self.page.get_by_role("article", name=f"Turn {number}", exact=True)

    def reply(self, number: int) -> Locator:
        """The text of a reply."""
        return self.turn(number).locator(".markdown")

    def talk(self, *messages: str) -> None:
        """Send messages, each when the reply to the one before has ended."""
        for message in messages:
            number = self.page.get_by_role("article").count() + 1
            self.send(message)
            self.wait(number)

    def wait(self, number: int) -> None:
        """Wait until a reply has ended."""
        expect(self.turn(number)).not_to_have_attribute("aria-busy", "true")  # does not look at all roles and names
        expect(self.turn(number).get_by_role("button", name="Try again")).to_be_visible()
        expect(self.turn(number)).not_to_have_attribute("aria-busy", "true")


class Tabs:
    """Tabs of a browser, which it keeps for the next test: opening one, and its first page, takes longest."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: dict[str, BrowserContext] = {}
        self._left: dict[str, list[Page]] = {}

    def take(self, base: str, **properties: Any) -> Tab:
        """A tab for the page at `base`: all in one browser, or in one with other properties, such as `viewport`."""
        key = repr(properties)
        if key not in self._contexts:
            self._contexts[key] = self._browser.new_context(**{"viewport": DESKTOP, "locale": "en-GB"} | properties)
            self._contexts[key].set_default_timeout(PATIENCE)
        left = self._left.setdefault(key, [])
        return Tab(left.pop() if left else self._contexts[key].new_page(), base, properties.get("has_touch", False))

    def give_back(self, tab: Tab, **properties: Any) -> None:
        """Keep a tab for a test that wants the same properties."""
        page = tab.leave()
        if page is not None:
            page.set_viewport_size(properties.get("viewport", DESKTOP))
            self._left[repr(properties)].append(page)
