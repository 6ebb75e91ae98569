"""A tab of the page as a user sees it: found by roles and names, with all that goes wrong in it noted."""

from __future__ import annotations

import os
import re

import pytest

IS_REQUIRED = bool(os.environ.get("CI") or os.environ.get("BARELOOP_CHROMIUM"))
if not IS_REQUIRED:
    pytest.importorskip("playwright.sync_api", reason="needs playwright")

from playwright.sync_api import (  # noqa: E402
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    Playwright,
    Request,
    expect,
    sync_playwright,
)

__all__ = ["IS_REQUIRED", "PATIENCE", "Browser", "Locator", "Page", "Playwright", "Tab", "expect", "sync_playwright"]

PATIENCE = 60_000  # milliseconds that a busy machine may take
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
        page.on("console", self._console)
        page.on("pageerror", lambda error: self._note(f"script: {error}"))
        page.on("request", self._request)
        page.on("popup", lambda popup: self._note(f"a window was opened: {popup.url}"))

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
        expect(self.turn(number).get_by_role("button", name="Try again")).to_be_visible()
        expect(self.turn(number)).not_to_have_attribute("aria-busy", "true")
