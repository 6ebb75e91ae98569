"""Two conversations side by side: titles, drafts, refusals, what is compared and what is not."""

from __future__ import annotations

import re

from tests.chat.web.browser.tab import Tab, expect
from tests.chat.web.scripted import refuse

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def sides(tab: Tab):
    return [tab.page.get_by_role("region", name=f"Side {name}") for name in "AB"]


def test_leaving_while_a_copy_is_made_is_not_taken_back(tab):
    tab.talk("first words")
    first = tab.page.url
    held = []

    def hold(route):
        held.append(route)

    tab.page.route("**/web/conversations", hold)
    with tab.page.expect_request("**/web/conversations"):
        tab.button("Compare").click()
    tab.button("New conversation").click()
    expect(tab.page.get_by_role("article")).to_have_count(0)
    with tab.page.expect_response("**/web/conversations"):
        held[0].continue_()
    expect(tab.composer).to_be_visible()
    tab.page.evaluate("() => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)))")
    assert tab.page.url.endswith("#/")
    assert tab.page.url != first


def test_a_conversation_is_compared_with_a_copy_not_with_itself(tab):
    tab.talk("first words")
    id = tab.page.url.split("/")[-1]
    tab.page.evaluate("(id) => { location.hash = `#/compare/${id}/${id}` }", id)
    expect(sides(tab)[1].get_by_role("article")).to_have_count(1)
    one, other = tab.page.url.split("/")[-2:]
    assert one == id != other


def test_a_message_that_failed_before_comes_into_the_common_composer(page, tab):
    tab.talk("first words")
    id = tab.page.url.split("/")[-1]
    tab.page.goto("about:blank")  # nobody listens
    tab.page.wait_for_timeout(0)
    conversation = next(each for each in page.library._open.values() if each.id == id)
    conversation.agent.draft = "words that were lost once"
    tab.open(f"{tab.base}/#/compare/{id}")
    expect(tab.composer).to_have_value("words that were lost once")


def test_nothing_is_compared_before_anything_was_said(page, tab):
    tab.talk("first words")
    tab.button("Compare").click()
    for side in sides(tab):
        expect(side.get_by_role("article")).to_have_count(1)
    expect(tab.page.get_by_role("region", name="Comparison")).to_be_hidden()
    expect(tab.page.get_by_text("both sides answer it")).to_be_visible()
    page.script.say("Red", " apples")
    page.script.say("Red", " apricots")
    tab.send("which fruit?")
    comparison = tab.page.get_by_role("region", name="Comparison")
    expect(comparison).to_contain_text("The first 6 characters are the same.")
    expect(comparison).to_contain_text(re.compile("A: .*after a prompt of [0-9]+, of which [0-9]+ were computed"))
    expect(comparison).not_to_contain_text("times as fast")  # two words say nothing of that
    expect(tab.page.get_by_text("both sides answer it")).to_be_hidden()
    for side in sides(tab):
        expect(side.get_by_role("article", name="Turn 2").locator(".bubble")).to_be_in_viewport()


# Two texts, and how many characters at their beginning are the same.
SAME = [
    ("abc", "abd", 2),
    ("😀x", "😀y", 1),
    ("😀", "😁", 0),
    ("a😀", "a😁", 1),
    ("ab", "abc", 2),
    ("", "x", 0),
    ("é", "é", 1),
]


def test_what_is_the_same_is_counted_in_characters(tab):
    script = "async ([one, other]) => (await import('/static/compare/difference.mjs')).commonPrefix(one, other)"
    for one, other, same in SAME:
        at = tab.page.evaluate(script, [one, other])
        assert one.encode("utf-16-le")[: 2 * at].decode("utf-16-le") == one[:same], (one, other)


SPEED = {
    "tokens_per_second": 20.0, "ttft": 0.1, "completion_tokens": 40, "prompt_tokens": 100, "cached_tokens": 0,
}  # fmt: skip
# What is different in a reply that is twice as fast, and what is said then; "": nothing.
COMPARED = [
    ({}, "B was 2.0 times as fast"),
    ({"completion_tokens": 31}, ""),
    ({"prompt_tokens": 130}, ""),
    ({"cached_tokens": 90}, ""),
    ({"tokens_per_second": 20.5}, "as fast as each other"),
]


def test_speeds_are_compared_only_for_similar_work(tab):
    script = """async ([one, other]) => {
      const { comparison } = await import("/static/compare/difference.mjs");
      const turn = (statistics) => ({ reply: "the same", statistics });
      return comparison(turn(one), turn(other)).map((line) => line.textContent).join(" ");
    }"""
    for changes, compared in COMPARED:
        text = tab.page.evaluate(script, [SPEED, SPEED | {"tokens_per_second": 40.0} | changes])
        assert compared in text if compared else "Both ran" not in text, changes


def test_a_comparison_has_a_title_and_a_way_out(tab):
    tab.talk("first words")
    first = tab.page.url
    tab.button("Compare").click()
    expect(sides(tab)[1].get_by_role("article")).to_have_count(1)
    expect(tab.page.get_by_role("heading", name="Side by side")).to_be_in_viewport()
    for side, name in zip(sides(tab), "AB", strict=True):
        expect(side.get_by_role("button", name=f"Settings of {name}")).to_be_visible()
        expect(side.get_by_role("spinbutton", name="Temperature")).to_have_attribute("placeholder", "default 0.5")
    tab.button("Close the comparison").click()
    expect(tab.page.get_by_role("heading", name="Side by side")).to_have_count(0)
    expect(tab.reply(1)).to_have_text("first words")
    assert tab.page.url == first


def test_a_phone_shows_one_side_with_its_title(page, open_tab):
    tab = open_tab(**PHONE)
    tab.talk("first words")
    tab.page.evaluate("() => { location.hash = location.hash.replace('/c/', '/compare/') }")
    one, other = sides(tab)
    expect(one.get_by_role("article")).to_be_visible()
    expect(other).to_be_hidden()
    tab.page.get_by_role("button", name="Show side B").tap()
    expect(one).to_be_hidden()
    expect(other.get_by_role("heading", name="first words")).to_be_in_viewport()
    expect(tab.page.get_by_role("button", name="Show side B")).to_have_attribute("aria-pressed", "true")
    assert tab.page.evaluate("() => document.documentElement.scrollWidth") == PHONE["viewport"]["width"]
    page.script.failure = refuse("the model failed")
    tab.send("second words")
    expect(tab.page.get_by_role("button", name="Show side A")).to_be_visible()


def test_leaving_a_comparison_closes_the_panel_of_a_side(tab):
    tab.talk("first words")
    tab.button("Compare").click()
    sides(tab)[1].get_by_role("article").get_by_role("button", name="Look inside").click()
    panel = tab.page.locator("#inside")
    expect(panel.get_by_role("option").first).to_be_visible()
    tab.button("Close the comparison").click()
    expect(tab.reply(1)).to_have_text("first words")
    expect(panel).to_be_hidden()
