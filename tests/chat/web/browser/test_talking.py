"""Talking with a model in the browser: replies, and other versions of them."""

from __future__ import annotations

from tests.chat.web.browser.tab import expect


def test_a_message_gets_a_reply_as_markdown_with_its_statistics(page, tab):
    page.script.say("# Title", "\n\n", "Some ", "**bold** ", "text.\n\n", "```python\n", "print(1)\n", "```\n")
    tab.send("Hello there")
    expect(tab.turn(1)).to_contain_text("Hello there")
    expect(tab.reply(1).get_by_role("heading", name="Title")).to_be_visible()
    expect(tab.reply(1).locator("strong")).to_have_text("bold")
    expect(tab.reply(1).locator("code")).to_have_text("print(1)\n")
    tab.wait(1)
    expect(tab.turn(1)).to_contain_text("8 tokens")
    expect(tab.turn(1)).to_contain_text("2 of 4 prompt tokens cached")
    expect(tab.page.get_by_role("meter", name="Context window")).to_have_attribute("aria-valuenow", "9")


def test_a_reply_is_shown_while_it_streams(page, tab):
    page.script.hold()
    page.script.say("One ", "two ", "**three** ", "four")
    tab.send("count")
    expect(tab.turn(1)).to_contain_text("Thinking")
    expect(tab.turn(1)).to_have_attribute("aria-busy", "true")
    page.script.let(2)
    expect(tab.reply(1)).to_have_text("One two")
    page.script.let(1)
    expect(tab.reply(1).locator("strong")).to_have_text("three")
    page.script.go()
    expect(tab.reply(1)).to_have_text("One two three four")
    tab.wait(1)


def test_stop_keeps_the_part_and_continue_goes_on(page, tab):
    page.script.hold()
    page.script.say("one", " two", " three")
    tab.send("count")
    page.script.let(2)
    expect(tab.reply(1)).to_have_text("one two")
    tab.button("Stop (Esc)").click()
    expect(tab.turn(1)).to_contain_text("Stopped.")
    expect(tab.reply(1)).to_have_text("one two")
    page.script.go()
    page.script.say(" three", " four")
    tab.turn(1).get_by_role("button", name="Continue").click()
    expect(tab.reply(1)).to_have_text("one two three four")
    tab.wait(1)
    expect(tab.turn(1)).not_to_contain_text("Stopped.")


def test_a_message_that_is_stopped_before_its_reply_comes_back_into_the_composer(page, tab):
    page.script.hold()
    tab.send("never mind")
    expect(tab.turn(1)).to_be_visible()
    tab.composer.fill("and more")
    tab.composer.press("Escape")
    expect(tab.composer).to_have_value("never mind\nand more")
    expect(tab.turn(1)).to_have_count(0)


def test_an_edited_message_is_a_version_and_arrows_switch(page, tab):
    page.script.say("First reply")
    tab.talk("first", "second")
    tab.turn(1).get_by_role("button", name="Edit message").click()
    editor = tab.page.get_by_role("textbox", name="Edit your message")
    expect(editor).to_have_value("first")
    page.script.say("Another reply")
    editor.fill("another")
    tab.button("Save and send").click()
    expect(tab.reply(1)).to_have_text("Another reply")
    expect(tab.turn(2)).to_have_count(0)
    tab.button("Version before").click()
    expect(tab.reply(1)).to_have_text("First reply")
    expect(tab.turn(2)).to_contain_text("second")
    expect(tab.button("Version before")).to_be_disabled()
    tab.button("Next version").click()
    expect(tab.turn(1)).to_contain_text("Version 2 of 2")
    expect(tab.reply(1)).to_have_text("Another reply")


def test_another_try_is_a_version_and_the_first_stays(page, tab):
    page.script.say("Good day")
    page.script.say("Good evening")
    tab.talk("greet me")
    tab.turn(1).get_by_role("button", name="Try again").click()
    expect(tab.reply(1)).to_have_text("Good evening")
    tab.button("Version before").click()
    expect(tab.reply(1)).to_have_text("Good day")
    tab.page.reload()
    expect(tab.reply(1)).to_have_text("Good day")
    expect(tab.turn(1)).to_contain_text("Version 1 of 2")


def test_a_page_that_is_opened_again_in_the_middle_of_a_reply_shows_all_of_it(page, tab):
    page.script.hold()
    page.script.say("The ", "beginning ", "and the ", "**end**")
    tab.send("tell me")
    page.script.let(2)
    expect(tab.reply(1)).to_have_text("The beginning")
    tab.page.reload()
    expect(tab.reply(1)).to_have_text("The beginning")
    page.script.go()
    expect(tab.reply(1)).to_have_text("The beginning and the end")
    tab.wait(1)
    expect(tab.turn(1).get_by_role("heading", name="Reply")).to_have_count(1)


def test_a_draft_is_kept_when_the_page_is_opened_again(tab):
    tab.talk("first")
    tab.composer.fill("not sent yet")
    tab.page.reload()
    expect(tab.composer).to_have_value("not sent yet")


def test_a_failure_is_one_readable_line_and_the_message_comes_back(page, tab):
    page.script.failure = ZeroDivisionError("secret")
    tab.send("hello")
    expect(tab.page.get_by_role("alert")).to_contain_text("internal error, see the program's output")
    expect(tab.composer).to_have_value("hello")


def test_what_left_the_window_is_told_at_its_place(tab):
    tab.command("/strategy truncate")
    expect(tab.page.get_by_role("status").filter(has_text="truncate")).to_be_visible()
    for number in range(1, 4):
        tab.send(f"message {number} " + "word " * 1500)
        tab.wait(number)
    expect(tab.turn(3)).to_contain_text("dropped")
    expect(tab.page.get_by_role("separator").first).to_contain_text("have left the window")


def test_code_is_copied_by_its_button(page, open_tab):
    tab = open_tab(permissions=["clipboard-read", "clipboard-write"])
    page.script.say("```python\nprint(1)\n```\n\nand **more**")
    tab.talk("code please")
    tab.button("Copy code").click()
    expect(tab.button("Copied")).to_be_visible()
    assert tab.page.evaluate("navigator.clipboard.readText()") == "print(1)\n"
    tab.button("Copy reply").click()
    tab.page.wait_for_function("navigator.clipboard.readText().then((text) => text.endsWith('**more**'))")
