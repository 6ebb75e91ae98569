"""Several tabs, hidden and closed ones, and a server that is started again."""

from __future__ import annotations

import pytest

from tests.chat.web.browser.tab import Tab, expect
from tests.chat.web.scripted import RunningPage

# A tab is hidden by its browser; a test says so in the browser's place.
HIDE = """(state) => {
  Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
  Object.defineProperty(document, "hidden", { value: state === "hidden", configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def hide(tab: Tab, is_hidden: bool = True) -> None:
    tab.page.evaluate(HIDE, "hidden" if is_hidden else "visible")


def address(tab: Tab) -> str:
    """Where the tab's conversation is, after the page's address."""
    return "#" + tab.page.url.partition("#")[2]


def test_two_tabs_see_the_same_reply_and_each_others_messages(page, open_tab):
    one = open_tab()
    one.talk("first")
    other = open_tab(address(one))
    expect(other.reply(1)).to_have_text("first")
    page.script.hold()
    page.script.say("both ", "see ", "this")
    other.send("second")
    page.script.let(2)
    for tab in (one, other):
        expect(tab.turn(2)).to_contain_text("second")
        expect(tab.reply(2)).to_have_text("both see")
        expect(tab.button("Stop (Esc)")).to_be_visible()
    one.button("Stop (Esc)").click()
    for tab in (one, other):
        expect(tab.turn(2)).to_contain_text("Stopped.")
        expect(tab.button("Send")).to_be_visible()
    page.script.go()
    one.send("/title A title for both")
    expect(other.page.get_by_role("heading", level=1)).to_have_text("A title for both")


def test_an_error_is_only_told_to_the_tab_that_made_it(open_tab):
    one = open_tab()
    one.talk("first")
    other = open_tab(address(one))
    expect(other.turn(1)).to_be_visible()
    one.command("/nonsense")
    expect(one.page.get_by_role("alert")).to_be_visible()
    one.talk("second")
    expect(other.turn(2)).to_be_visible()
    expect(other.page.get_by_role("alert")).to_have_count(0)


def test_a_version_that_one_tab_chooses_is_shown_in_the_other(page, open_tab):
    one = open_tab()
    page.script.say("Good day")
    page.script.say("Good evening")
    one.talk("greet me")
    other = open_tab(address(one))
    one.turn(1).get_by_role("button", name="Try again").click()
    expect(other.reply(1)).to_have_text("Good evening")
    other.button("Version before").click()
    expect(one.reply(1)).to_have_text("Good day")


def test_a_conversation_that_another_tab_deletes_can_be_restored_here(open_tab):
    one = open_tab()
    one.talk("first")
    other = open_tab(address(one))
    expect(other.turn(1)).to_be_visible()
    one.button("More about first").click()
    one.page.get_by_role("button", name="Delete", exact=True).click()
    expect(other.page.get_by_role("status").filter(has_text="This conversation was deleted")).to_be_visible()
    other.button("Restore it").click()
    expect(other.reply(1)).to_have_text("first")
    other.talk("second")


def test_a_closed_tab_keeps_what_was_said(page, open_tab):
    tab = open_tab()
    page.script.hold()
    page.script.say("it ", "goes ", "on")
    tab.send("go")
    page.script.let(1)
    expect(tab.reply(1)).to_have_text("it")
    where = address(tab)
    tab.page.close()
    page.script.go()
    later = open_tab(where)
    expect(later.reply(1)).to_have_text("it goes on")


def test_a_hidden_tab_lets_go_and_catches_up(page, open_tab):
    tab, other = open_tab(), open_tab()
    tab.talk("first")
    hide(tab)
    other.page.goto(f"{page.base}/{address(tab)}")
    other.page.reload()
    expect(other.turn(1)).to_be_visible()
    page.script.hold()
    page.script.say("while ", "you ", "were ", "away")
    other.send("second")
    page.script.let(2)
    expect(other.reply(2)).to_have_text("while you")
    expect(tab.turn(2)).to_have_count(0)
    hide(tab, False)
    expect(tab.reply(2)).to_have_text("while you")
    page.script.go()
    expect(tab.reply(2)).to_have_text("while you were away")


def test_after_a_restart_of_the_server_the_page_goes_on(page, open_tab):
    tab = open_tab()
    tab.expect_problem("ERR_|Failed to load")  # the console tells every connection that is refused
    tab.talk("first")
    page.close()
    banner = tab.page.get_by_role("status").filter(has_text="Connection lost")
    expect(banner).to_be_visible()
    tab.send("while it is away")
    expect(tab.page.get_by_role("alert")).to_contain_text("the server does not answer")
    expect(tab.composer).to_have_value("while it is away")
    again = RunningPage(port=page.port)
    try:
        expect(banner).to_be_hidden()
        tab.composer.press("Enter")
        expect(tab.reply(2)).to_have_text("while it is away")
        expect(tab.reply(1)).to_have_text("first")
    finally:
        again.close()


@pytest.mark.parametrize("address", ["", "?key=wrong"])
def test_a_browser_without_the_key_gets_a_page_that_says_so(page, chromium_browser, address):
    context = chromium_browser.new_context()
    tab = context.new_page()
    assert tab.goto(f"{page.base}/{address}").status == 401
    expect(tab.get_by_role("heading")).to_have_text("This page needs its key")
    context.close()
