"""The program itself with a small real model: all parts of the page together."""

from __future__ import annotations

import re

from tests.chat.web.browser.tab import PATIENCE, Tab, expect


def test_the_demo_model_answers_and_shows_what_it_computed(start, chromium_browser):
    address = start("-m", "demo")
    context = chromium_browser.new_context()
    context.set_default_timeout(PATIENCE)
    tab = Tab(context.new_page(), address.partition("/?")[0])
    tab.open(address)
    tab.talk("Who are you?")
    expect(tab.reply(1)).to_contain_text("demo model of bareloop")
    expect(tab.turn(1)).to_contain_text("tokens/s")
    tab.turn(1).get_by_role("button", name="Look inside").click()
    panel = tab.page.get_by_role("complementary", name="Inside the model")
    panel.get_by_role("listbox").get_by_role("option").nth(2).click()
    card = panel.get_by_role("region", name="Token 3")
    card.get_by_role("button", name=re.compile("Go on from here")).first.click()
    expect(tab.turn(1)).to_contain_text("Version 2 of 2")
    tab.wait(1)
    panel.get_by_role("tab", name="Window").click()
    panel.get_by_role("radio", name="probability").check()
    expect(panel.get_by_role("listbox").locator(".p0, .p1, .p2, .p3").first).to_be_visible()
    panel.get_by_role("tab", name="Cost").click()
    expect(panel).to_contain_text("of weights and cache")
    assert tab.problems == []
    context.close()
