"""Whatever a model writes is shown as text, runs nothing, asks nobody for anything, and leaves the page as it was."""

from __future__ import annotations

import pytest

from tests.chat.web.browser.hostile import LARGE, REPLIES
from tests.chat.web.browser.tab import expect

REST = "\n\nThe **end**."

# Elements and attributes that can act, and what of them is in a reply beside the page's own buttons.
ACTIVE = """(reply) => {
  const elements = new Set(("script style link meta base title template iframe frame object embed portal form input " +
    "textarea select img video audio picture source svg math dialog").split(" "));
  const attributes = new Set(("style id name src srcset action formaction accesskey autofocus contenteditable " +
    "background poster").split(" "));
  return [...reply.querySelectorAll("*")].filter((each) => !each.closest("figure.code figcaption")).flatMap((each) => {
    const tag = each.tagName.toLowerCase();
    const found = elements.has(tag) ? [tag] : [];
    for (const { name, value } of each.attributes) {
      if (name.startsWith("on") || attributes.has(name)) found.push(`${tag} ${name}`);
      if (name === "href" && !/^(https?:\\/\\/|mailto:)/.test(value)) found.push(`${tag} ${value}`);
    }
    return found;
  });
}"""


def test_the_hostile_replies_would_act_if_they_were_inserted(chromium_browser):
    """The test's own test: without the page's rules, the list of what can act is long."""
    html = "".join(REPLIES.values())
    page = chromium_browser.new_page()
    found = page.evaluate(f"(html) => ({ACTIVE})(new DOMParser().parseFromString(html, 'text/html').body)", html)
    page.close()
    assert {"script", "img src", "img onerror", "form action", "style", "iframe src"} <= set(found)


def test_hostile_replies_are_harmless(page, tab):
    """All in one conversation: one could prepare the ground for another."""
    tab.page.evaluate("window.hit = 0")
    shape = tab.page.evaluate(
        "[document.body.children.length, document.title.length > 0, getComputedStyle(document.body).display]"
    )
    for number, (name, text) in enumerate(REPLIES.items(), 1):
        page.script.say(*(text[at : at + 7] for at in range(0, len(text), 7)), REST)
        tab.send(f"say {name}")
        tab.wait(number)
        assert tab.reply(number).evaluate(ACTIVE) == [], name
        assert tab.reply(number).inner_text().endswith("The end.") or "unterminated" in name, name
    assert tab.page.evaluate("window.hit") == 0
    assert shape == tab.page.evaluate(
        "[document.body.children.length, document.title.length > 0, getComputedStyle(document.body).display]"
    )
    asked = {url.removeprefix(tab.base).partition("?")[0] for url in tab.requests}
    assert all(each == "/" or each.startswith(("/static/", "/web/")) for each in asked), asked
    tab.page.reload()  # drawn as a whole, not as a stream
    expect(tab.turn(len(REPLIES))).to_be_visible()
    for number, name in enumerate(REPLIES, 1):
        expect(tab.reply(number)).not_to_be_empty()
        assert tab.reply(number).evaluate(ACTIVE) == [], name
    assert tab.page.evaluate("window.hit") is None


def test_html_is_shown_as_it_was_written(page, tab):
    page.script.say("<script>alert(1)</script> and <b>bold</b>")
    tab.talk("html")
    expect(tab.reply(1)).to_have_text("<script>alert(1)</script> and <b>bold</b>")


def test_links_say_where_they_go_and_tell_nothing(page, tab):
    page.script.say("[bank](https://elsewhere.invalid/path) and [bad](javascript:alert(1))")
    tab.talk("links")
    link = tab.reply(1).get_by_role("link")
    expect(link).to_have_count(1)
    expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
    expect(link).to_have_attribute("title", "https://elsewhere.invalid/path")
    shown = link.evaluate("(link) => link.textContent + getComputedStyle(link, '::after').content")
    assert "elsewhere.invalid" in shown


def test_what_cannot_be_seen_is_shown(page, tab):
    page.script.say("\x1b[31mred\x1b[0m \u202eevil\u202c &#27;&#x202e;\n\n```\n\x1b[2Jcode\u2066\n```\n")
    tab.talk("control characters")
    expect(tab.reply(1)).to_contain_text("␛[31mred␛[0m ⟦U+202E⟧evil⟦U+202C⟧ ␛⟦U+202E⟧")
    expect(tab.reply(1).locator("code")).to_have_text("␛[2Jcode⟦U+2066⟧\n")


def test_titles_messages_and_reasons_are_text_as_well(page, tab):
    text = "<img src=x onerror='window.hit=1'><script>window.hit=1</script>"
    tab.talk(text)
    expect(tab.turn(1)).to_contain_text(text)
    expect(tab.page.get_by_role("navigation").get_by_role("link")).to_contain_text("<img src=x")
    tab.command(f"/title {text}")
    expect(tab.page.get_by_role("heading", level=1)).to_have_text(text)
    tab.command(f"/x{text}")
    expect(tab.page.get_by_role("alert")).to_contain_text("<img")
    tab.turn(1).get_by_role("button", name="Look inside").click()
    expect(tab.page.get_by_role("complementary").get_by_role("listbox").get_by_role("option").first).to_contain_text(
        "<img"
    )
    assert tab.page.evaluate("window.hit") is None


@pytest.mark.parametrize("name", LARGE)
def test_a_huge_reply_is_shown_and_the_page_answers(page, tab, name):
    text = LARGE[name]
    page.script.say(*(text[at : at + 8000] for at in range(0, len(text), 8000)), REST)
    tab.send("go")
    tab.wait(1)
    expect(tab.reply(1).locator("strong").last).to_have_text("end")
    tab.page.get_by_role("heading", name="Reply").focus()
    tab.talk("and now?")
    expect(tab.reply(2)).to_have_text("and now?")
    width = tab.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]
