"""The view into the model: tokens, the window, costs; and two conversations side by side."""

from __future__ import annotations

import re

import pytest

from tests.chat.web.browser.tab import Tab, expect


@pytest.fixture
def talked(page, tab) -> Tab:
    """A conversation with two turns."""
    page.script.say("Good", " day", " to", " you")
    page.script.say("Well", " indeed")
    tab.talk("hello there", "how are you")
    return tab


def panel(tab: Tab):
    return tab.page.get_by_role("complementary", name="Inside the model")


def tokens(tab: Tab):
    return panel(tab).get_by_role("listbox").get_by_role("option")


def look(tab: Tab, number: int) -> None:
    tab.turn(number).get_by_role("button", name="Look inside").click()
    expect(panel(tab).get_by_role("heading", name="Inside the model")).to_be_focused()


def test_tokens_are_coloured_by_their_probability(talked):
    look(talked, 1)
    expect(tokens(talked)).to_have_text(["Good", " day", " to", " you"], use_inner_text=False)
    colours = tokens(talked).evaluate_all("(all) => all.map((each) => getComputedStyle(each).backgroundColor)")
    assert set(colours) == {
        panel(talked).get_by_text("≥ 50").evaluate("(each) => getComputedStyle(each).backgroundColor")
    }
    assert colours[0] != "rgba(0, 0, 0, 0)"
    expect(panel(talked)).to_contain_text(re.compile(r"Perplexity\s*2\.00"))


def test_another_token_is_gone_on_from_as_a_version(page, talked):
    look(talked, 1)
    tokens(talked).nth(1).click()
    card = panel(talked).get_by_role("region", name="Token 2")
    expect(card.get_by_role("list", name="What could have stood here").get_by_role("listitem")).to_have_count(3)
    expect(card).to_contain_text("50 %")
    page.script.say(" worlds")
    card.get_by_role("button", name="Go on from here with “␣other”").click()
    expect(talked.reply(1)).to_have_text("Good other worlds")
    expect(talked.turn(2)).to_have_count(0)
    expect(talked.turn(1)).to_contain_text("Version 2 of 2")
    expect(tokens(talked)).to_have_text(["Good", " other", " worlds"])
    talked.button("Version before").click()
    expect(talked.reply(1)).to_have_text("Good day to you")
    expect(talked.turn(2)).to_be_visible()


def test_an_end_token_ends_the_reply_there(talked):
    look(talked, 2)
    tokens(talked).nth(1).click()
    panel(talked).get_by_role("button", name="Go on from here with “<|end|>”").click()
    expect(talked.reply(2)).to_have_text("Well")
    expect(talked.turn(2)).to_contain_text("Version 2 of 2")


def test_tokens_appear_while_a_reply_streams(page, talked):
    look(talked, 2)
    page.script.hold()
    page.script.say("one", " two", " three")
    talked.send("count")
    page.script.let(2)
    expect(tokens(talked)).to_have_text(["one", " two"])
    page.script.go()
    expect(tokens(talked)).to_have_text(["one", " two", " three"])
    expect(panel(talked)).to_contain_text("Reply 3 of 3")
    panel(talked).get_by_role("button", name="The reply before").click()
    expect(tokens(talked)).to_have_text(["Well", " indeed"])


def test_probabilities_that_were_not_recorded_are_computed(page, talked):
    where = talked.page.url
    talked.send("/title kept")
    expect(talked.page.get_by_role("heading", level=1)).to_have_text("kept")
    page.library._open.clear()  # as after a restart: only the file is left
    talked.page.goto("about:blank")
    talked.page.goto(where)
    look(talked, 1)
    panel(talked).get_by_role("button", name="Compute them").click()
    expect(tokens(talked).filter(has_text="day")).to_have_count(1)
    expect(tokens(talked).last).to_have_text("you")


def test_the_window_shows_the_prompt_with_control_tokens_and_what_was_cached(talked):
    talked.button("Look inside the window").click()
    expect(panel(talked).get_by_role("tab", name="Window")).to_have_attribute("aria-selected", "true")
    expect(tokens(talked).first).to_have_text("<|user|>")
    expect(tokens(talked)).to_have_count(17)
    expect(panel(talked)).to_contain_text(
        "Of 14 tokens of the last prompt 7 were cached, 7 computed; 3 were decoded since."
    )
    expect(panel(talked)).to_contain_text("17 of 4,096 tokens are used")
    panel(talked).get_by_role("radio", name="text").check()
    expect(panel(talked).get_by_role("listbox", name="The prompt as text")).to_contain_text("Good day to you")


def test_costs_are_figures_beside_the_limit_of_the_machine(talked):
    look(talked, 1)
    panel(talked).get_by_role("tab", name="Cost").click()
    expect(panel(talked)).to_contain_text("Each token reads 1.0 MB")
    expect(panel(talked)).to_contain_text("2.0 GB/s")
    expect(panel(talked)).to_contain_text("4 tokens: 2 from the cache, 2 computed")


def test_the_panel_closes_and_gives_the_focus_back(talked):
    look(talked, 1)
    panel(talked).get_by_role("button", name="Close Inside").click()
    expect(panel(talked)).to_be_hidden()
    expect(talked.turn(1).get_by_role("button", name="Look inside")).to_be_focused()


def test_another_conversation_closes_the_panel(talked):
    look(talked, 1)
    talked.button("New conversation").click()
    expect(panel(talked)).to_be_hidden()
    talked.page.go_back()
    expect(talked.turn(2)).to_be_visible()
    look(talked, 2)
    expect(tokens(talked)).to_have_text(["Well", " indeed"])


def test_one_message_goes_to_both_sides(page, talked):
    talked.button("Compare").click()
    sides = [talked.page.get_by_role("region", name=f"Side {name}") for name in "AB"]
    for side in sides:
        expect(side.get_by_role("article")).to_have_count(2)
    sides[1].get_by_role("combobox", name="Model").select_option("other")
    expect(sides[1].get_by_role("combobox", name="Model")).to_have_value("other")
    sides[1].get_by_role("checkbox", name="History").uncheck()
    expect(sides[1].get_by_text("History is off")).to_be_visible()
    page.script.say("Red", " apples")
    page.script.say("Red", " pears")
    talked.send("which fruit?")
    for side in sides:
        expect(side.get_by_role("article", name="Turn 3")).to_contain_text("which fruit?")
        expect(side.get_by_role("article", name="Turn 3").locator(".markdown")).to_have_text(
            re.compile("^Red (apples|pears)")
        )
    expect(talked.page.get_by_role("region", name="Comparison")).to_contain_text("The first 4 characters are the same.")
    lengths = sorted(len(prompt) for prompt in page.script.prompts[-2:])
    assert lengths == [1, 5]  # without and with the history
    talked.page.reload()
    for side in sides:
        expect(side.get_by_role("article")).to_have_count(3)


def test_both_sides_are_stopped(page, tab):
    tab.button("Compare").click()
    sides = [tab.page.get_by_role("region", name=f"Side {name}") for name in "AB"]
    page.script.hold()
    tab.send("one two three")
    for side in sides:
        expect(side.get_by_role("article")).to_be_visible()
    tab.button("Stop (Esc)").click()
    expect(tab.button("Send")).to_be_visible()
    expect(tab.composer).to_have_value("one two three")
