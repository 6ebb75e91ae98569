"""The view into the model in detail: a refused fork, running replies, control tokens, unknown values, focus."""

from __future__ import annotations

import re

import pytest

from tests.chat.web.browser.tab import Tab, expect

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
LAPTOP = {"viewport": {"width": 1000, "height": 700}}

# What a module of the page gives for arguments.
CALL = "async ([file, name, ...values]) => (await import(`/static/${file}`))[name](...values)"


def call(tab: Tab, file: str, name: str, *values: object):
    return tab.page.evaluate(CALL, [file, name, *values])


def panel(tab: Tab):
    """The panel, in whatever role."""
    return tab.page.locator("#inside")


def tokens(tab: Tab):
    return panel(tab).get_by_role("listbox").get_by_role("option")


def look(tab: Tab, number: int) -> None:
    tab.turn(number).get_by_role("button", name="Look inside").click()
    expect(panel(tab).get_by_role("heading", name="Inside the model")).to_be_focused()


def test_the_reply_that_is_running_is_the_one_that_is_shown(page, tab):
    tab.talk("first", "second")
    page.script.hold()
    page.script.say("one", " two", " three")
    tab.send("count")
    page.script.let(2)
    expect(tab.reply(3)).to_have_text("one two")
    tab.button("Look inside the window").click()
    panel(tab).get_by_role("tab", name="Reply").click()
    expect(panel(tab)).to_contain_text("Reply 3 of 3")
    expect(tokens(tab)).to_have_text(["one", " two"])


def test_a_fork_that_is_refused_leaves_no_trace(page, tab):
    page.script.say("Good", " day", " to", " you")
    tab.talk("hello there")
    look(tab, 1)
    tokens(tab).nth(1).click()
    tab.expect_problem("409")
    answer = '{"error": {"message": "a reply is running"}}'
    tab.page.route("**/line", lambda route: route.fulfill(status=409, content_type="application/json", body=answer))
    panel(tab).get_by_role("button", name="Go on from here with “␣other”").click()
    expect(tab.page.get_by_role("alert")).to_contain_text("a reply is running")
    tab.page.unroute("**/line")
    page.script.hold()
    page.script.say("Fine", " weather")
    tab.turn(1).get_by_role("button", name="Try again").click()
    page.script.let(1)
    expect(tokens(tab)).to_have_text(["Fine"])  # not what was kept for the fork
    page.script.go()
    expect(tokens(tab)).to_have_text(["Fine", " weather"])


def test_markup_in_a_reply_is_no_control_token(page, tab):
    page.script.say("<b>", "[X]", " text")
    tab.talk("hello")
    texts = ["<b>", "[X]", " text", "<|end|>"]
    answer = {"tokens": [[text, text if text != "<|end|>" else "", 0.5, [], 1, 1] for text in texts], "first": 0}
    tab.page.route("**/tokens?*", lambda route: route.fulfill(json=answer))
    tab.page.reload()
    look(tab, 1)
    expect(tokens(tab)).to_have_count(4)
    assert tokens(tab).evaluate_all("(all) => all.map((each) => each.classList.contains('control'))") == [
        False, False, False, True,
    ]  # fmt: skip


def test_only_known_names_are_control_tokens_of_the_prompt(tab):
    known = ["<|user|>", "<s>", "</s>", "<bos>", "<eos>", "[INST]", "[/INST]"]
    text = ["<b>", "[X]", "<", "[INST", "<|", "user"]
    assert [call(tab, "inside/tokens.mjs", "isOfTemplate", each) for each in known] == [True] * len(known)
    assert [call(tab, "inside/tokens.mjs", "isOfTemplate", each) for each in text] == [False] * len(text)


def test_what_the_server_does_not_know_of_the_window_is_said(tab):
    tab.talk("hello there")

    def forget(route):
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"cached": None, "prompt": None})

    tab.page.route("**/window?*", forget)
    tab.button("Look inside the window").click()
    expect(panel(tab)).to_contain_text("Which of these tokens were cached is not known.")
    tokens(tab).first.hover()
    expect(panel(tab).get_by_role("tooltip")).to_contain_text("source unknown")


@pytest.mark.parametrize("properties", [PHONE, LAPTOP], ids=["phone", "laptop"])
def test_a_panel_over_the_page_is_a_modal_dialog(open_tab, properties):
    tab = open_tab(**properties)
    tab.talk("hello there")
    look(tab, 1)
    dialog = tab.page.get_by_role("dialog", name="Inside the model")
    expect(dialog).to_have_attribute("aria-modal", "true")
    for _ in range(25):
        tab.page.keyboard.press("Tab")
        assert not tab.page.evaluate("() => Boolean(document.activeElement.closest('main, nav, #menu, .skip'))")
    tab.page.keyboard.press("Escape")
    expect(panel(tab)).to_be_hidden()
    expect(tab.composer).to_be_enabled()
    expect(tab.turn(1).get_by_role("button", name="Look inside")).to_be_focused()


def test_the_panel_of_a_wide_page_is_a_part_of_it(tab):
    tab.talk("hello there")
    look(tab, 1)
    expect(tab.page.get_by_role("complementary", name="Inside the model")).to_be_visible()
    tab.composer.fill("still to be used")
    tab.page.set_viewport_size(LAPTOP["viewport"])  # now it lies over the page
    expect(tab.page.get_by_role("dialog", name="Inside the model")).to_be_visible()
    expect(tab.page.locator("main")).to_have_js_property("inert", True)


def test_a_touched_token_has_its_card_and_no_other_bubble(page, open_tab):
    tab = open_tab(**PHONE)
    page.script.say(*(f" word{number}" for number in range(200)))
    tab.talk("hello there")
    look(tab, 1)
    panel(tab).get_by_role("button", name=re.compile("Go to token")).last.tap()
    card = panel(tab).get_by_role("region", name=re.compile("^Token"))
    expect(card).to_be_visible()
    expect(panel(tab).get_by_role("tooltip")).to_have_count(0)
    chosen = panel(tab).locator("[aria-selected=true]").filter(has_text="word")
    expect(chosen).to_be_in_viewport()
    low, top = chosen.bounding_box(), card.bounding_box()["y"]
    assert low["y"] + 2 * low["height"] <= top  # with a line after it
    box = card.bounding_box()
    for button in card.get_by_role("button", name=re.compile("Go on from here")).all():
        assert button.bounding_box()["x"] + button.bounding_box()["width"] <= box["x"] + box["width"] - 10


def test_a_jump_to_a_token_far_away_goes_there_in_slices(page, tab):
    page.script.say(*(f" w{number}" for number in range(3000)))
    tab.command("/set max_new_tokens 4000")
    tab.talk("go")
    look(tab, 1)
    chart = panel(tab).get_by_role("slider").first
    expect(chart).to_have_attribute("aria-valuemax", "3000")
    chart.focus()
    tab.page.keyboard.press("End")
    tab.page.keyboard.press("Enter")
    expect(tokens(tab).last).to_be_focused()
    expect(tokens(tab).last).to_have_text(" w2999")
    expect(panel(tab).get_by_role("region", name="Token 3000")).to_be_visible()


def test_scored_tokens_are_said_to_be_the_models_reading(page, tab):
    tab.talk("hello there")
    note = "which may differ from those that it wrote"
    look(tab, 1)
    expect(tokens(tab)).to_have_count(2)
    expect(panel(tab).get_by_text(note)).to_be_hidden()
    answer = {"tokens": [["hello", "hello", 0.5, [], 0, 1], [" there", " there", 0.5, [], 0, 2]], "first": 0}
    tab.page.route("**/tokens?*", lambda route: route.fulfill(json=answer))
    tab.page.reload()
    look(tab, 1)
    expect(panel(tab).get_by_text(note)).to_be_visible()


def test_a_reply_faster_than_the_measurement_is_explained(tab):
    words = call(tab, "inside/cost.mjs", "verdict", 100e6, 13.5e9, 141)
    assert words == (
        "Each token reads 100 MB of weights and cache. This reply read 14.1 GB/s, more than the 13.5 GB/s measured "
        "for large reads: part of the weights stays in the processor's cache, or the machine was busy during the "
        "measurement."
    )
    words = call(tab, "inside/cost.mjs", "verdict", 100e6, 13.5e9, 96.4)
    assert words.endswith("could do 135 tokens a second; this reply had 96.4: 71 % of that.")
    assert "100 % of that" in call(tab, "inside/cost.mjs", "verdict", 100e6, 13.5e9, 135.2)
    assert "unknown" in call(tab, "inside/cost.mjs", "verdict", 0, 13.5e9, 96.4)


# When tokens came, in ms after the one before, and the times that are shown.
SHARED = [
    ([None, 6, 6, 30, 0.1, 0.1, 0.1, 0.1, 6, 6, 6], [None, 6, 6, *[30.4 / 5] * 5, 6, 6, 6]),  # late, then at once
    ([None, 6, 0.1, 12, 6, 6], [None, 6, 6.05, 6.05, 6, 6]),  # the peak after it
    ([None, 0.1, 0.1, 6, 6, 6, 6], [None, *[6.2 / 3] * 3, 6, 6, 6]),  # with the first
    ([None, 4, 6, 8], [None, 4, 6, 8]),
    ([None, None, None], [None, None, None]),
    ([], []),
]


def test_tokens_that_came_together_share_their_time(tab):
    for times, shown in SHARED:
        assert call(tab, "inside/cost.mjs", "spread", times) == pytest.approx(shown)


def test_the_least_certain_bars_and_cards_can_be_seen(tab):
    tab.talk("hello there")
    look(tab, 1)
    heights = panel(tab).locator("details").evaluate_all("(all) => all.map((each) => each.offsetHeight)")
    visible = {height for height in heights if height}
    assert len(visible) == 1
    panel(tab).get_by_role("tab", name="Cost").click()
    names = panel(tab).locator("details summary span:first-child:visible")
    assert names.evaluate_all("(all) => all.filter((each) => each.scrollWidth > each.clientWidth).length") == 0
