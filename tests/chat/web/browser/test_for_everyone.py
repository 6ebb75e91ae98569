"""The page on a phone, in the dark, with the keyboard alone, and for a screen reader."""

from __future__ import annotations

import pytest

from tests.chat.web.browser.accessibility import faults, poor_contrast, roles
from tests.chat.web.browser.tab import Tab, expect

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
MARKDOWN = """# Title

Some **bold** text, `code`, and a [link](https://elsewhere.invalid).

> A quote

```python
print(1)
```

| a | b |
|---|---|
| 1 | 2 |
"""

# The element with the focus: where it is, and whether a ring can be seen around it or around what holds it.
FOCUS = """() => {
  const element = document.activeElement;
  if (element === document.body) return { name: "", ring: true }; // after the last one, before the first
  const ring = (each) => {
    const { outlineStyle, outlineWidth, boxShadow } = getComputedStyle(each);
    return (outlineStyle !== "none" && parseFloat(outlineWidth) > 0) || boxShadow !== "none";
  };
  const holder = element.closest(".box, .search");
  const name = element.getAttribute("aria-label") || element.textContent.trim() || element.tagName;
  return { name, ring: ring(element) || (holder !== null && ring(holder)) };
}"""


def sideways(tab: Tab) -> list[str]:
    """What makes the page wider than the screen."""
    return tab.page.evaluate("""() => {
      const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
      const all = wide ? [...document.querySelectorAll("body *")] : [];
      const beyond = all.filter((each) => each.getBoundingClientRect().right > innerWidth + 1);
      return beyond.map((each) => each.outerHTML.slice(0, 80));
    }""")


def walk(tab: Tab, *keys: str) -> list[str]:
    """Press keys; names of what has the focus after each. Each can be seen."""
    names = []
    for key in keys:
        tab.page.keyboard.press(key)
        focus = tab.page.evaluate(FOCUS)
        assert focus["ring"], f"no visible focus on {focus['name']}"
        names.append(focus["name"])
    return names


def tab_to(tab: Tab, name: str) -> None:
    """Press Tab until an element with this name has the focus."""
    seen = []
    while not seen or seen[-1] != name:
        seen += walk(tab, "Tab")
        assert len(seen) < 60, seen


@pytest.fixture
def full(page, open_tab):
    """Opens a conversation with everything in it that a page can show."""

    def make() -> Tab:
        tab = open_tab()
        page.script.say("A first try")
        page.script.say(MARKDOWN)
        tab.talk("hello there")
        tab.turn(1).get_by_role("button", name="Try again").click()
        expect(tab.reply(1).get_by_role("table")).to_be_visible()
        tab.command("/help")
        expect(tab.page.get_by_role("region", name="Output")).to_be_visible()
        tab.command("/nonsense")
        expect(tab.page.get_by_role("alert")).to_be_visible()
        return tab

    return make


def test_a_phone_shows_the_whole_width_and_sends(page, open_tab):
    tab = open_tab(**PHONE)
    assert sideways(tab) == []
    page.script.say(
        MARKDOWN + "\n" + "w" * 500 + "\n\n```\n" + "c" * 500 + "\n```\n\n|" + "cell|" * 40 + "\n|" + "-|" * 40 + "\n"
    )
    tab.composer.fill("hello " + "m" * 200)
    tab.button("Send").tap()
    tab.wait(1)
    assert sideways(tab) == []
    tab.button("Settings").tap()
    expect(tab.page.get_by_role("dialog")).to_be_visible()
    assert sideways(tab) == []


def test_a_phone_has_the_conversations_in_a_drawer(open_tab):
    tab = open_tab(**PHONE)
    tab.talk("first")
    link = tab.page.get_by_role("navigation").get_by_role("link")
    expect(link).not_to_be_in_viewport()
    tab.button("Conversations").tap()
    expect(link).to_be_in_viewport()
    assert sideways(tab) == []
    tab.page.keyboard.press("Escape")
    expect(link).not_to_be_in_viewport()
    expect(tab.button("Conversations")).to_be_focused()
    tab.button("Conversations").tap()
    tab.button("New conversation").tap()
    expect(link).not_to_be_in_viewport()
    tab.button("Conversations").tap()
    link.tap()
    expect(link).not_to_be_in_viewport()
    expect(tab.turn(1)).to_be_visible()
    tab.button("Conversations").tap()
    tab.page.touchscreen.tap(380, 400)  # beside the drawer
    expect(link).not_to_be_in_viewport()


def test_a_phone_shows_the_inside_on_the_whole_width(page, open_tab):
    tab = open_tab(**PHONE)
    tab.talk("first words here")
    tab.turn(1).get_by_role("button", name="Look inside").tap()
    panel = tab.page.get_by_role("dialog", name="Inside the model")
    expect(panel).to_be_in_viewport()
    assert panel.bounding_box()["width"] == PHONE["viewport"]["width"]
    assert sideways(tab) == []
    for name in ("Window", "Cost"):
        panel.get_by_role("tab", name=name).tap()
        expect(panel.get_by_role("tabpanel", name=name)).to_be_visible()
        assert sideways(tab) == []
    panel.get_by_role("button", name="Close Inside").tap()
    expect(panel).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(full, scheme):
    tab = full()
    tab.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    assert poor_contrast(tab.page) == []
    tab.composer.press_sequentially("/s")
    expect(tab.page.get_by_role("listbox", name="Commands")).to_be_visible()
    assert poor_contrast(tab.page, ".completion *") == []
    tab.composer.fill("")
    tab.turn(1).get_by_role("button", name="Look inside").click()
    panel = tab.page.get_by_role("complementary", name="Inside the model")
    panel.get_by_role("option").first.click()
    expect(panel.get_by_role("region", name="Token 1")).to_be_visible()
    for name in ("Reply", "Window", "Cost"):
        panel.get_by_role("tab", name=name).click()
        expect(panel.get_by_role("tabpanel", name=name)).to_be_visible()
        assert poor_contrast(tab.page, "aside *") == []
    tab.button("Settings").click()
    expect(tab.page.get_by_role("dialog")).to_be_visible()
    assert poor_contrast(tab.page, "dialog *") == []


def test_the_theme_follows_the_system_or_the_users_choice(tab):
    colour = "getComputedStyle(document.documentElement).backgroundColor"
    tab.page.emulate_media(color_scheme="light")
    light = tab.page.evaluate(colour)
    tab.page.emulate_media(color_scheme="dark")
    dark = tab.page.evaluate(colour)
    assert light != dark
    tab.button("Settings").click()
    tab.page.get_by_role("combobox", name="Theme").select_option("light")
    assert tab.page.evaluate(colour) == light
    tab.page.reload()
    expect(tab.composer).to_be_visible()
    assert tab.page.evaluate(colour) == light


def test_everything_can_be_done_with_the_keyboard(page, tab):
    expect(tab.composer).to_be_focused()
    page.script.say("Good", " day")
    page.script.say("Good", " evening")
    tab.page.keyboard.type("greet me")
    tab.page.keyboard.press("Enter")
    tab.wait(1)
    expect(tab.composer).to_be_focused()
    tab.page.keyboard.press("Control+b")  # the sidebar away, and back
    expect(tab.page.get_by_role("navigation")).not_to_be_in_viewport()
    tab.page.keyboard.press("Control+b")
    expect(tab.page.get_by_role("navigation")).to_be_in_viewport()
    tab.page.keyboard.press("Control+k")
    tab_to(tab, "Try again")
    tab.page.keyboard.press("Enter")
    expect(tab.reply(1)).to_have_text("Good evening")
    tab_to(tab, "Look inside")
    tab.page.keyboard.press("Enter")
    panel = tab.page.get_by_role("complementary", name="Inside the model")
    expect(panel.get_by_role("heading", name="Inside the model")).to_be_focused()
    walk(tab, "Tab", "Tab")
    expect(panel.get_by_role("tab", name="Reply")).to_be_focused()
    walk(tab, "ArrowRight", "ArrowRight", "ArrowRight")
    expect(panel.get_by_role("tab", name="Reply")).to_be_focused()
    tab_to(tab, "1: “Good” 50 %")
    assert walk(tab, "ArrowRight") == ["2: “␣evening” 50 %"]
    tab.page.keyboard.press("Enter")
    expect(panel.get_by_role("region", name="Token 2")).to_be_focused()
    tab.page.keyboard.press("Escape")
    expect(panel.get_by_role("region", name="Token 2")).to_be_hidden()
    tab.page.keyboard.press("Escape")
    expect(panel).to_be_hidden()
    expect(tab.turn(1).get_by_role("button", name="Look inside")).to_be_focused()
    tab.page.keyboard.press("/")
    expect(tab.composer).to_be_focused()
    tab.composer.fill("")
    tab.page.keyboard.press("ArrowUp")
    expect(tab.page.get_by_role("textbox", name="Edit your message")).to_be_focused()
    tab.page.keyboard.press("Escape")
    expect(tab.turn(1).get_by_role("button", name="Edit message")).to_be_focused()


def test_a_menu_is_used_with_the_keyboard(tab):
    tab.talk("first")
    tab.button("More").focus()
    tab.page.keyboard.press("Enter")
    expect(tab.page.get_by_role("link", name="Export as JSON")).to_be_focused()
    assert walk(tab, "ArrowDown", "ArrowDown", "ArrowDown", "Escape")[2:] == ["Rename", "More"]


def test_a_skip_link_leads_to_the_conversation(tab):
    tab_to(tab, "Skip to the conversation")
    expect(tab.page.get_by_role("link", name="Skip to the conversation")).to_be_in_viewport()
    tab.page.keyboard.press("Enter")
    expect(tab.page.get_by_role("main")).to_be_focused()


def test_every_view_has_names_roles_and_order(full):
    tab = full()
    assert faults(tab.page) == []
    expected = {
        "main",
        "navigation",
        "heading",
        "article",
        "textbox",
        "button",
        "combobox",
        "meter",
        "table",
        "alert",
        "link",
    }
    assert expected <= roles(tab.page)
    tab.composer.press_sequentially("/s")
    expect(tab.page.get_by_role("listbox", name="Commands")).to_be_visible()
    assert faults(tab.page) == []
    tab.composer.fill("")
    tab.turn(1).get_by_role("button", name="Edit message").click()
    assert faults(tab.page) == []
    tab.button("Cancel").click()
    tab.button("More").click()
    assert faults(tab.page) == []
    tab.page.keyboard.press("Escape")
    tab.turn(1).get_by_role("button", name="Look inside").click()
    panel = tab.page.get_by_role("complementary", name="Inside the model")
    panel.get_by_role("option").first.click()
    for name in ("Reply", "Window", "Cost"):
        panel.get_by_role("tab", name=name).click()
        expect(panel.get_by_role("tabpanel", name=name)).to_be_visible()
        assert faults(tab.page) == []
    tab.button("Settings").click()
    expect(tab.page.get_by_role("dialog")).to_be_visible()
    assert faults(tab.page) == []


def test_a_new_conversation_and_two_side_by_side_have_names_roles_and_order(tab):
    expect(tab.page.get_by_role("heading", name="Chat with scripted")).to_be_visible()
    assert faults(tab.page) == []
    tab.button("Compare").click()
    expect(tab.page.get_by_role("region", name="Side B")).to_be_visible()
    tab.send("the same for both")
    expect(tab.page.get_by_role("region", name="Comparison")).to_be_visible()
    assert faults(tab.page) == []


def test_a_screen_reader_is_told_when_a_reply_has_ended(page, tab):
    page.script.hold()
    page.script.say("Good ", "day")
    live = tab.page.locator("[aria-live=polite]").filter(has_text="Reply finished")
    tab.send("greet me")
    page.script.let(1)
    expect(tab.reply(1)).to_have_text("Good")
    expect(live).to_have_count(0)
    page.script.go()
    expect(live).to_have_text("Reply finished: Good day")
