"""The list of conversations, and files: export, import, text."""

from __future__ import annotations

import json
import re

from tests.chat.web.browser.tab import Tab, expect

DROP = """(element, [name, content]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([content], name));
  for (const kind of ["dragover", "drop"])
    element.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


def listed(tab: Tab):
    """The list's links."""
    return tab.page.get_by_role("navigation").get_by_role("link")


def start(tab: Tab, *messages: str) -> None:
    """One conversation for each message."""
    for number, message in enumerate(messages, 1):
        if number > 1:
            tab.button("New conversation").click()
            expect(tab.page.get_by_role("article")).to_have_count(0)
        tab.talk(message)
        expect(listed(tab)).to_have_count(number)


def choose(tab: Tab, menu: str, entry: str) -> None:
    tab.button(menu).click()
    tab.page.get_by_role("button", name=entry, exact=True).click()


def test_conversations_are_listed_by_their_first_words_and_opened(tab):
    start(tab, "talk of apples", "talk of pears")
    expect(listed(tab)).to_have_text(["talk of pears", "talk of apples"])
    expect(listed(tab).first).to_have_attribute("aria-current", "page")
    listed(tab).last.click()
    expect(tab.turn(1)).to_contain_text("talk of apples")
    expect(listed(tab).last).to_have_attribute("aria-current", "page")
    tab.page.go_back()
    expect(tab.turn(1)).to_contain_text("talk of pears")


def test_a_search_shows_the_conversations_that_have_its_words(tab):
    start(tab, "talk of apples", "talk of pears")
    search = tab.page.get_by_role("searchbox")
    search.fill("APP talk")
    expect(listed(tab)).to_have_text(["talk of apples"])
    search.press("Enter")
    expect(tab.turn(1)).to_contain_text("talk of apples")
    search.fill("oranges")
    expect(tab.page.get_by_role("navigation")).to_contain_text("Nothing found")
    search.press("Escape")
    expect(listed(tab)).to_have_count(2)


def test_a_conversation_gets_another_name(page, tab):
    start(tab, "talk of apples")
    choose(tab, "More about talk of apples", "Rename")
    name = tab.page.get_by_role("textbox", name="New title")
    name.fill("Fruit <b>& more</b>")
    name.press("Enter")
    expect(listed(tab)).to_have_text(["Fruit <b>& more</b>"])
    expect(tab.page.get_by_role("heading", level=1)).to_have_text("Fruit <b>& more</b>")
    expect(tab.page).to_have_title(re.compile(r"^Fruit <b>& more</b>"))


def test_a_deleted_conversation_can_be_taken_back(tab):
    start(tab, "talk of apples")
    choose(tab, "More about talk of apples", "Delete")
    expect(listed(tab)).to_have_count(0)
    expect(tab.page.get_by_role("article")).to_have_count(0)
    tab.button("Undo").click()
    expect(listed(tab)).to_have_text(["talk of apples"])
    expect(tab.turn(1)).to_contain_text("talk of apples")


def test_an_exported_conversation_is_imported_as_it_was(page, tab, tmp_path):
    page.script.say("Red ones.")
    tab.talk("talk of apples")
    with tab.page.expect_download() as waiting:
        tab.button("More").click()
        tab.page.get_by_role("link", name="Export as JSON").click()
    path = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(path)
    assert path.suffix == ".json"
    assert json.loads(path.read_text())["messages"][-1]["content"] == "Red ones."
    choose(tab, "More about talk of apples", "Delete")
    expect(listed(tab)).to_have_count(0)
    with tab.page.expect_file_chooser() as chooser:
        tab.button("Import").click()
    chooser.value.set_files(path)
    expect(tab.reply(1)).to_have_text("Red ones.")
    expect(listed(tab)).to_have_text(["talk of apples"])


def test_a_conversation_is_exported_as_markdown(page, tab, tmp_path):
    page.script.say("**Red** ones.")
    tab.talk("talk of apples")
    with tab.page.expect_download() as waiting:
        tab.button("More").click()
        tab.page.get_by_role("link", name="Export as Markdown").click()
    text = waiting.value.path().read_text()
    assert waiting.value.suggested_filename.endswith(".md")
    assert "talk of apples" in text
    assert "**Red** ones." in text


def test_a_file_that_is_no_conversation_is_refused_with_its_name(tab, tmp_path):
    tab.expect_problem("400")  # the server's refusal
    for name, content in (("notes.txt", "not JSON"), ("other.json", '{"a": 1}')):
        (tmp_path / name).write_text(content)
        with tab.page.expect_file_chooser() as chooser:
            tab.button("Import").click()
        chooser.value.set_files(tmp_path / name)
        expect(tab.page.get_by_role("alert").filter(has_text=name)).to_be_visible()


def test_a_dropped_text_file_goes_into_the_message(tab):
    tab.composer.fill("Look:")
    tab.page.get_by_role("region", name="Conversation").evaluate(DROP, ["notes.py", "print(1)\n"])
    expect(tab.composer).to_have_value("Look:\nnotes.py:\n```py\nprint(1)\n```\n")
    tab.composer.press("Enter")
    expect(tab.turn(1)).to_contain_text("notes.py")


def test_a_dropped_file_that_is_no_text_is_refused(tab):
    tab.page.get_by_role("region", name="Conversation").evaluate(DROP, ["photo.png", "\0\0"])
    expect(tab.page.get_by_role("alert")).to_contain_text("photo.png is not a text file")
    expect(tab.composer).to_have_value("")


def test_a_dropped_conversation_is_imported(tab):
    tab.page.get_by_role("navigation").evaluate(
        DROP,
        ["talk.json", json.dumps([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Good day"}])],
    )
    expect(tab.reply(1)).to_have_text("Good day")


def test_a_conversation_that_is_not_there_is_told(tab, page):
    tab.expect_problem("404")
    tab.page.goto(f"{page.base}/#/c/nothing")
    expect(tab.page.get_by_text("there is no conversation 'nothing'")).to_be_visible()
