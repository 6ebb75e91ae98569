"""The page in detail: drafts, edits, focus, scrolling, links, what stays when something fails."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.chat.web.browser.tab import Tab, expect
from tests.chat.web.browser.test_conversations import choose, listed, start

PASTE = """(element, [text, name]) => {
  const clipboardData = new DataTransfer();
  clipboardData.setData("text/plain", text);
  clipboardData.items.add(new File(["x"], name, { type: "image/png" }));
  const paste = new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true });
  return element.dispatchEvent(paste);
}"""
# Whether the page leaves a dragged text to the browser, which inserts it.
DRAG = """(element) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.setData("text/plain", "a text");
  return element.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}"""
# The Enter that ends the work of an input method.
COMPOSED = """(element) => element.dispatchEvent(
  new KeyboardEvent("keydown", { key: "Enter", keyCode: 229, isComposing: true, bubbles: true, cancelable: true }))"""


def where(tab: Tab) -> str:
    return "#" + tab.page.url.partition("#")[2]


def run(page, tab: Tab, message: str = "go on") -> None:
    """Begin a reply that waits for the test."""
    page.script.hold()
    page.script.say("one ", "two")
    tab.send(message)
    page.script.let(1)
    expect(tab.button("Stop (Esc)")).to_be_visible()


def test_a_tab_keeps_its_name_when_it_is_loaded_again(tab):
    name = "async () => (await import('/static/app.mjs')).app.tab"
    before = tab.page.evaluate(name)
    tab.page.reload()
    assert tab.page.evaluate(name) == before


def test_settings_wait_for_the_end_of_a_reply(page, tab):
    tab.talk("first")
    run(page, tab)
    tab.button("Settings").click()
    dialog = tab.page.get_by_role("dialog", name="Settings")
    expect(dialog).to_contain_text("A reply is running")
    expect(dialog.get_by_role("textbox", name="System prompt")).to_be_disabled()
    page.script.go()
    expect(dialog.get_by_role("textbox", name="System prompt")).to_be_enabled()
    expect(dialog.get_by_text("A reply is running")).to_be_hidden()


def test_a_wrong_setting_stays_until_it_is_put_right(tab):
    tab.button("Settings").click()
    dialog = tab.page.get_by_role("dialog", name="Settings")
    field = dialog.get_by_role("spinbutton", name="top_p")
    expect(field).to_have_attribute("placeholder", "1")
    field.fill("7")
    field.press("Tab")
    expect(dialog.get_by_text("top_p = 7.0")).to_be_visible()
    expect(field).to_have_value("7")
    dialog.get_by_role("button", name="Reset top_p").click()
    expect(dialog.get_by_text("top_p = 7.0")).to_have_count(0)
    expect(field).to_have_value("")


def test_a_message_on_its_way_does_not_hold_the_user_back(tab):
    tab.talk("first")
    there = where(tab)
    waiting: list[Any] = []
    tab.page.route("**/web/conversations", lambda route: waiting.append(route))  # noqa: PLW0108
    tab.button("New conversation").click()
    expect(tab.page.get_by_role("article")).to_have_count(0)
    with tab.page.expect_request("**/web/conversations"):
        tab.send("a new talk")
    listed(tab).click()
    expect(tab.turn(1)).to_contain_text("first")
    waiting[0].continue_()
    expect(listed(tab)).to_have_count(2)
    assert where(tab) == there
    expect(tab.turn(1)).to_contain_text("first")


def test_what_is_being_edited_is_kept(open_tab):
    one = open_tab()
    one.talk("first", "second")
    other = open_tab(where(one))
    one.turn(2).get_by_role("button", name="Edit message").click()
    editor = one.page.get_by_role("textbox", name="Edit your message")
    editor.fill("a long edit")
    other.turn(2).get_by_role("button", name="Try again").click()
    expect(one.turn(2)).to_contain_text("Version 2 of 2")
    expect(editor).to_have_value("a long edit")
    one.button("New conversation").click()
    expect(editor).to_have_count(0)
    listed(one).click()
    expect(editor).to_have_value("a long edit")
    one.button("Cancel").click()
    one.page.reload()
    expect(one.turn(2)).to_be_visible()
    expect(editor).to_have_count(0)


def test_a_command_that_fails_comes_back(tab):
    tab.command("/nonsense here")
    expect(tab.composer).to_have_value("/nonsense here")
    tab.composer.press_sequentially("a")  # it is selected
    expect(tab.composer).to_have_value("a")


def test_definitions_of_links_are_shown(page, tab):
    page.script.say("See [it][1].\n\n[1]: https://elsewhere.invalid/a\n\n[Note]: important")
    tab.talk("hello")
    expect(tab.reply(1)).to_contain_text("[1]: https://elsewhere.invalid/a")
    expect(tab.reply(1)).to_contain_text("[Note]: important")


def test_a_link_shows_its_host_unless_its_text_is_the_address(page, tab):
    page.script.say("[https://good.invalid/?evil.invalid](https://evil.invalid) https://good.invalid/a")
    tab.talk("hello")
    links = tab.reply(1).get_by_role("link")
    expect(links.nth(0)).to_have_attribute("data-host", "evil.invalid")
    expect(links.nth(1)).not_to_have_attribute("data-host", re.compile(""))


def test_code_marks_in_a_list_begin_no_fence_and_long_lists_are_counted_on(page, tab):
    page.script.say("- ```code``` inside\n\n# Heading\n\n" + "".join(f"1. {'x' * 100}\n" for _ in range(60)))
    tab.talk("hello")
    expect(tab.reply(1).get_by_role("heading", name="Heading")).to_be_visible()
    lists = (
        tab.reply(1).locator("ol").evaluate_all("(lists) => lists.map((each) => [each.start, each.children.length])")
    )
    assert len(lists) > 1
    assert [first for first, _ in lists] == [1 + sum(n for _, n in lists[:index]) for index in range(len(lists))]


def test_escape_in_the_search_stops_no_reply(page, tab):
    run(page, tab)
    search = tab.page.get_by_role("searchbox")
    search.fill("x")
    search.press("Escape")
    expect(search).to_have_value("")
    search.press("Escape")
    expect(tab.composer).to_be_focused()
    page.script.go()
    expect(tab.reply(1)).to_have_text("one two")


def test_enter_while_a_reply_runs_says_why_nothing_is_sent(page, tab):
    run(page, tab)
    tab.send("more")
    expect(tab.page.get_by_role("status").filter(has_text="A reply is running")).to_be_visible()
    expect(tab.composer).to_have_value("more")


def test_a_text_beside_a_picture_and_a_dragged_text_are_left_to_the_browser(tab):
    assert tab.composer.evaluate(PASTE, ["a text", "picture.png"])
    assert tab.composer.evaluate(DRAG)
    expect(tab.page.get_by_role("alert")).to_have_count(0)


def test_another_version_is_shown_in_its_place_without_words(page, tab):
    tab.talk(*("word " * 300 for _ in range(3)))
    tab.turn(1).get_by_role("button", name="Try again").click()
    expect(tab.turn(1)).to_contain_text("Version 2 of 2")
    tab.talk("second", "third")
    place = "(turn) => turn.getBoundingClientRect().top"
    before = tab.button("Version before")
    before.scroll_into_view_if_needed()
    top = tab.turn(1).evaluate(place)
    before.press("Enter")
    expect(tab.turn(1)).to_contain_text("Version 1 of 2")
    expect(tab.turn(3)).to_contain_text("word")
    assert tab.turn(1).evaluate(place) == pytest.approx(top, abs=2)
    expect(tab.button("Next version")).to_be_focused()  # the other one is at its end
    expect(tab.page.get_by_role("region", name="Output")).to_have_count(0)
    expect(tab.page.locator(".toast")).to_have_count(0)


def test_buttons_that_need_the_end_of_a_reply_do_nothing_before(page, tab):
    tab.talk("first")
    run(page, tab)
    again = tab.turn(1).get_by_role("button", name="Try again")
    expect(again).to_be_disabled()
    again.focus()
    tab.page.keyboard.press("Enter")
    page.script.go()
    tab.wait(2)
    expect(again).to_be_enabled()
    expect(again).to_be_focused()
    expect(tab.page.get_by_role("alert")).to_have_count(0)


def test_the_title_of_the_window_follows_the_view(tab):
    tab.talk("talk of apples")
    expect(tab.page).to_have_title("talk of apples – bareloop")
    tab.button("New conversation").click()
    expect(tab.page).to_have_title("bareloop")


def test_a_broken_address_is_told(tab, page):
    tab.page.goto(f"{page.base}/#/c/%E0%A4%A")
    expect(tab.page.get_by_role("alert")).to_contain_text("this address is broken")
    tab.talk("first")


def test_an_input_methods_enter_ends_no_title(tab):
    tab.talk("first")
    choose(tab, "More", "Rename")
    field = tab.page.get_by_role("textbox", name="Title")
    field.evaluate(COMPOSED)
    expect(field).to_be_visible()
    field.fill("Fruit")
    field.press("Enter")
    expect(tab.page.get_by_role("heading", level=1)).to_have_text("Fruit")
    expect(tab.composer).to_have_value("")


def test_a_completed_command_can_be_undone(tab):
    tab.composer.press_sequentially("/strat")
    tab.composer.press("Tab")
    expect(tab.composer).to_have_value("/strategy ")
    tab.page.keyboard.press("Control+z")
    expect(tab.composer).not_to_have_value("/strategy ")


def test_the_texts_of_conversations_are_searched(page, tab):
    page.script.say("They grow in Kent.")
    start(tab, "talk of apples", "talk of pears")
    search = tab.page.get_by_role("searchbox", name="Search the conversations")
    search.fill("kent")
    expect(listed(tab)).to_have_text(["talk of apples"])


def test_the_list_changes_in_its_place(page, open_tab):
    tab, other = open_tab(), open_tab()
    start(tab, "talk of apples", "talk of pears")
    tab.button("More about talk of apples").click()
    rename = tab.page.get_by_role("button", name="Rename", exact=True)
    expect(rename).to_be_focused()
    other.talk("a third one")
    expect(tab.page.locator("#conversations li")).to_have_count(3)
    expect(rename).to_be_focused()


def test_deleted_conversations_are_restored_where_they_are_listed(tab):
    start(tab, "talk of apples", "talk of pears")
    there = where(tab)
    choose(tab, "More about talk of apples", "Delete")
    tab.button("Undo").click()
    expect(listed(tab)).to_have_count(2)
    assert where(tab) == there  # it was not the open one
    choose(tab, "More about talk of apples", "Delete")
    expect(listed(tab)).to_have_count(1)
    tab.button("Deleted conversations").click()
    dialog = tab.page.get_by_role("dialog", name="Deleted conversations")
    dialog.get_by_role("button", name="Restore talk of apples").click()
    expect(dialog).to_have_count(0)
    expect(tab.turn(1)).to_contain_text("talk of apples")


def test_the_draft_of_a_deleted_conversation_goes_and_comes_with_it(tab):
    tab.talk("talk of apples")
    tab.composer.fill("not sent yet")
    choose(tab, "More about talk of apples", "Delete")
    expect(tab.page.get_by_role("article")).to_have_count(0)
    assert tab.page.evaluate("Object.keys(localStorage).filter((key) => key.includes('draft'))") == []
    tab.button("Undo").click()
    expect(tab.composer).to_have_value("not sent yet")


def test_a_line_about_a_deletion_goes_when_another_tab_restores_it(open_tab):
    one = open_tab()
    one.talk("first")
    other = open_tab(where(one))
    expect(other.turn(1)).to_be_visible()
    choose(one, "More about first", "Delete")
    expect(other.page.get_by_text("This conversation was deleted")).to_be_visible()
    one.button("Undo").click()
    expect(other.page.get_by_text("This conversation was deleted")).to_have_count(0)


def test_a_new_conversation_offers_only_what_it_can(tab):
    tab.button("More").click()
    for name in ("Rename", "Delete", "Export as JSON"):
        expect(tab.page.get_by_role("button", name=name, exact=True)).to_be_disabled()
    expect(tab.page.get_by_role("button", name="Compare side by side")).to_be_focused()


def test_an_empty_reply_and_a_limit_say_so(page, tab):
    page.script.say("")
    tab.talk("nothing")
    expect(tab.turn(1)).to_contain_text("(empty reply)")
    tab.command("/set max_new_tokens 2")
    page.script.say("one ", "two ", "three")
    tab.talk("count")
    expect(tab.turn(2)).to_contain_text("limit of 2 tokens (max_new_tokens)")
    page.script.say("three")
    tab.turn(2).get_by_role("button", name="Continue").click()
    expect(tab.turn(2)).to_contain_text("New part: 1 token")
    expect(tab.reply(2)).to_have_text("one two three")


def test_at_most_three_messages_are_shown_and_errors_last(tab):
    tab.page.evaluate("""async () => {
      const { app } = await import("/static/app.mjs");
      app.toast("error", "an error");
      for (const number of [1, 2, 3, 3]) app.toast("info", `message ${number}`);
    }""")
    expect(tab.page.locator(".toast span")).to_have_text(["message 2", "message 3", "an error"])
    box, composer = tab.page.locator(".toast").last.bounding_box(), tab.composer.bounding_box()
    assert box["y"] + box["height"] <= composer["y"]


def test_what_is_covered_on_a_phone_gets_no_focus(open_tab):
    tab = open_tab(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    tab.talk("first")
    tab.turn(1).get_by_role("button", name="Look inside").tap()
    expect(tab.page.locator("#inside")).to_be_visible()
    assert tab.page.evaluate("document.getElementById('main').inert")
    tab.button("Close Inside").tap()
    expect(tab.composer).to_be_visible()
    assert not tab.page.evaluate("document.getElementById('main').inert")


def test_a_task_that_fails_stops_no_other(tab):
    tab.expect_problem("on purpose")
    tab.page.evaluate("""async () => {
      const { later } = await import("/static/base/frames.mjs");
      later(() => { throw new Error("on purpose"); });
    }""")
    tab.talk("**first**")
    expect(tab.reply(1).locator("strong")).to_have_text("first")
