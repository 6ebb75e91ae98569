"""Images in the browser: attached by button, drop and paste, sent, shown, enlarged, given back."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image

from tests.chat.web.browser.accessibility import faults, poor_contrast
from tests.chat.web.browser.tab import Locator, Tab, expect
from tests.chat.web.browser.test_conversations import listed
from tests.chat.web.browser.test_for_everyone import PHONE, sideways
from tests.chat.web.pictures import file, url
from tests.chat.web.scripted import refuse

# Give files to the page as a drop or a paste does: [[name, media type, base64 or a number of zeros], …].
GIVE = """(target, [kind, files]) => {
  const data = new DataTransfer();
  for (const [name, type, content] of files) {
    const bytes = Number.isInteger(content)
      ? new Uint8Array(content)
      : Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
    data.items.add(new File([bytes], name, { type }));
  }
  const how = { bubbles: true, cancelable: true };
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data, ...how })
    : new DragEvent("drop", { dataTransfer: data, ...how });
  target.dispatchEvent(event);
  return event.defaultPrevented;
}"""
NATURAL = "(image) => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"


def attach(tab: Tab, *files: tuple[str, bytes], kind: str = "image/png") -> None:
    """Choose files with the button."""
    payload: list[Any] = [{"name": name, "mimeType": kind, "buffer": content} for name, content in files]
    with tab.page.expect_file_chooser() as chooser:
        tab.button("Attach images or text files").click()
    chooser.value.set_files(payload)


def give(tab: Tab, how: str, *files: tuple[str, str, bytes]) -> bool:
    """Drop or paste files. -> whether the page took them"""
    given = [[name, kind, base64.b64encode(content).decode()] for name, kind, content in files]
    return tab.composer.evaluate(GIVE, [how, given])


def waiting(tab: Tab) -> Locator:
    """The images that go with the next message."""
    return tab.page.get_by_role("list", name="Attached images").get_by_role("img")


def shown(tab: Tab, turn: int) -> Locator:
    """The images of a message."""
    return tab.turn(turn).get_by_role("button", name="Enlarge").get_by_role("img")


def sent(page) -> list[str]:
    """The data: URLs that the model got last."""
    return [part["image"] for part in page.script.prompts[-1][-1]["content"][:-1]]


def test_images_are_attached_removed_sent_shown_and_enlarged(page, tab):
    attach(tab, ("cat.png", file("red", (40, 20))), ("dog.png", file("blue")), ("fish.png", file("lime", (10, 30))))
    expect(waiting(tab)).to_have_count(3)
    expect(waiting(tab).first).to_have_attribute("alt", "cat.png")
    tab.button("Remove dog.png").click()
    expect(waiting(tab)).to_have_count(2)
    expect(tab.button("Remove fish.png")).to_be_focused()
    page.script.say("Two images")
    tab.talk("What is this?")
    expect(waiting(tab)).to_have_count(0)
    assert sent(page) == [url(file("red", (40, 20))), url(file("lime", (10, 30)))]
    assert [image.get_attribute("alt") for image in shown(tab, 1).all()] == ["cat.png", "fish.png"]
    assert [image.evaluate(NATURAL) for image in shown(tab, 1).all()] == [[40, 20], [10, 30]]
    tab.turn(1).get_by_role("button", name="Enlarge cat.png").click()
    dialog = tab.page.get_by_role("dialog", name="cat.png")
    assert dialog.get_by_role("img", name="cat.png").evaluate(NATURAL) == [40, 20]
    assert faults(tab.page) == []
    tab.page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(tab.turn(1).get_by_role("button", name="Enlarge cat.png")).to_be_focused()
    tab.page.reload()
    expect(shown(tab, 1)).to_have_count(2)
    assert [image.evaluate(NATURAL) for image in shown(tab, 1).all()] == [[40, 20], [10, 30]]


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_images_and_texts_that_are_dropped_or_pasted(page, tab, how):
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    files = [("a.png", "image/png", file()), ("b.jpg", "image/jpeg", file("blue", kind="jpeg"))]
    assert give(tab, how, *files, ("notes.txt", "text/plain", b"remember"), ("c.svg", "image/svg+xml", svg))
    expect(waiting(tab)).to_have_count(2)
    expect(tab.composer).to_have_value(f"notes.txt:\n```txt\nremember\n```\nc.svg:\n```svg\n{svg.decode()}\n```\n")
    assert give(tab, how, files[0])  # once is enough
    tab.composer.fill("")
    tab.button("Send").click()
    tab.wait(1)
    assert sent(page) == [url(file()), url(file("blue", kind="jpeg"), "image/jpeg")]
    expect(shown(tab, 1)).to_have_count(2)
    expect(tab.turn(1).locator(".bubble")).to_be_hidden()  # there is no text
    expect(listed(tab)).to_contain_text("[image a.png] [image b.jpg]")
    expect(tab.page).to_have_title("[image a.png] [image b.jpg] – bareloop")


def test_an_image_of_another_kind_is_converted(page, tab):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "ico", sizes=[(32, 32)])
    attach(tab, ("icon.ico", buffer.getvalue()), kind="image/x-icon")
    expect(waiting(tab)).to_have_count(1)
    tab.talk("look")
    assert sent(page)[0].startswith("data:image/png;base64,")
    assert shown(tab, 1).evaluate(NATURAL) == [32, 32]


def test_what_is_no_image_or_too_much_is_refused_in_one_line(page, tab):
    alert = tab.page.get_by_role("alert")
    attach(tab, ("broken.tiff", b"nothing"), kind="image/tiff")
    expect(alert).to_contain_text("broken.tiff is no image that this browser can read")
    tab.button("Dismiss").click()
    assert tab.composer.evaluate(GIVE, ["drop", [["large.png", "image/png", 20_000_001]]])
    expect(alert).to_contain_text("large.png has 21 MB; a message takes images up to 20 MB each")
    tab.button("Dismiss").click()
    attach(tab, *((f"{number}.png", file(f"#0000{number:02}")) for number in range(9)))
    expect(alert).to_contain_text("a message takes up to 8 images")
    expect(waiting(tab)).to_have_count(8)
    assert page.script.prompts == []


def test_a_damaged_image_is_refused_by_the_server_and_stays_to_be_removed(page, tab):
    tab.expect_problem("400")
    attach(tab, ("cut.png", file()[:60]))
    tab.send("look")
    expect(tab.page.get_by_role("alert")).to_contain_text("cut.png")
    expect(tab.composer).to_have_value("look")
    tab.button("Remove cut.png").click()
    expect(tab.composer).to_be_focused()
    tab.composer.press("Enter")
    tab.wait(1)
    assert page.script.prompts[-1] == [{"role": "user", "content": "look"}]


def test_a_message_without_a_reply_comes_back_with_its_images(page, tab):
    attach(tab, ("cat.png", file()))
    page.script.failure = refuse("no answer")
    tab.send("look")
    expect(tab.page.get_by_role("alert")).to_contain_text("no answer")
    expect(tab.composer).to_have_value("look")
    expect(waiting(tab)).to_have_count(1)
    tab.composer.press("Enter")
    tab.wait(1)
    assert sent(page) == [url(file())]


def test_a_message_that_was_never_answered_comes_back_with_its_images_to_a_new_tab(page, open_tab, data):
    one = open_tab()
    attach(one, ("cat.png", file()))
    page.script.failure = refuse("no answer")
    one.send("look")
    expect(one.composer).to_have_value("look")
    expect(waiting(one)).to_have_count(1)
    there = "#" + one.page.url.partition("#")[2]
    one.page.evaluate("localStorage.clear()")
    other = open_tab(there, locale="en-US")  # another browser
    expect(other.composer).to_have_value("look")
    expect(waiting(other)).to_have_count(1)


def test_images_wait_while_another_conversation_is_open(page, tab):
    tab.talk("first")
    attach(tab, ("cat.png", file()))
    expect(waiting(tab)).to_have_count(1)
    tab.button("New conversation").click()
    expect(waiting(tab)).to_have_count(0)
    listed(tab).click()
    expect(waiting(tab)).to_have_count(1)
    expect(tab.turn(1)).to_be_visible()
    tab.talk("second")
    assert sent(page) == [url(file())]


def test_a_command_leaves_the_images_for_the_message(page, tab):
    attach(tab, ("cat.png", file()))
    tab.command("/help")
    expect(waiting(tab)).to_have_count(1)
    tab.talk("look")
    assert sent(page) == [url(file())]


def test_an_edit_and_another_reply_keep_the_images(page, tab):
    attach(tab, ("cat.png", file()))
    tab.talk("look")
    tab.turn(1).get_by_role("button", name="Edit message").click()
    expect(shown(tab, 1)).to_be_visible()
    tab.page.get_by_role("textbox", name="Edit your message").fill("look closer")
    tab.button("Save and send").click()
    expect(tab.turn(1)).to_contain_text("Version 2 of 2")
    expect(shown(tab, 1)).to_have_count(1)
    assert sent(page) == [url(file())]
    tab.turn(1).get_by_role("button", name="Try again").click()
    expect(tab.turn(1)).to_contain_text("Version 3 of 3")
    assert sent(page) == [url(file())]


def test_images_are_shown_while_the_reply_streams_and_in_every_tab(page, open_tab):
    one = open_tab()
    page.script.hold()
    attach(one, ("cat.png", file()))
    one.send("look")
    expect(shown(one, 1)).to_be_visible()
    other = open_tab("#" + one.page.url.partition("#")[2])
    expect(shown(other, 1)).to_be_visible()
    page.script.go()
    for tab in (one, other):
        tab.wait(1)
        expect(shown(tab, 1)).to_have_count(1)


def test_a_model_that_takes_no_images_says_so_at_once(page, tab):
    page.script.blind = {"scripted"}
    tab.talk("hello")
    attach(tab, ("cat.png", file()))
    expect(tab.page.get_by_role("alert")).to_contain_text("cat.png: this model takes no images; choose a vision")
    expect(waiting(tab)).to_have_count(0)


def test_both_sides_get_the_images(page, tab):
    tab.button("Compare").click()
    expect(tab.page.get_by_role("heading", name="Side by side")).to_be_visible()
    attach(tab, ("cat.png", file()))
    tab.send("look")
    for name in ("A", "B"):
        side = tab.page.get_by_role("region", name=f"Side {name}")
        expect(side.get_by_role("button", name="Enlarge cat.png")).to_be_visible()
    expect(tab.page.get_by_role("region", name="Comparison")).to_be_visible()
    assert [prompt[-1]["content"][0]["image"] for prompt in page.script.prompts] == [url(file())] * 2


def test_names_are_text_and_nothing_else(page, tab):
    name = "<img src=x onerror=alert(1)>.png"
    attach(tab, (name, file()))
    expect(waiting(tab)).to_have_attribute("alt", name)
    tab.talk("look")
    expect(shown(tab, 1)).to_have_attribute("alt", name)
    tab.turn(1).get_by_role("button", name="Enlarge").click()
    expect(tab.page.get_by_role("dialog", name=name)).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_images_are_accessible(tab, theme):
    tab.page.emulate_media(color_scheme=theme)
    attach(tab, ("cat.png", file()))
    tab.talk("look")
    attach(tab, ("dog.png", file("blue")))
    expect(waiting(tab)).to_have_count(1)
    assert faults(tab.page) == []
    assert poor_contrast(tab.page) == []


def test_images_on_a_phone(page, open_tab):
    tab = open_tab(**PHONE)
    pictures = [(f"{number}.png", file(f"#0000{number:02}", (3000, 20 + number))) for number in range(7)]
    attach(tab, *pictures, ("tall.png", file("lime", (20, 3000))))
    expect(waiting(tab)).to_have_count(8)
    assert sideways(tab) == []
    box = tab.button("Remove tall.png").bounding_box()
    assert box and min(box["width"], box["height"]) >= 32
    tab.button("Remove 0.png").tap()
    expect(waiting(tab)).to_have_count(7)
    tab.composer.fill("look")
    tab.button("Send").tap()
    tab.wait(1)
    expect(shown(tab, 1)).to_have_count(7)
    assert sideways(tab) == []
    tab.turn(1).get_by_role("button", name="Enlarge 1.png").tap()
    expect(tab.page.get_by_role("dialog", name="1.png")).to_be_visible()
    assert sideways(tab) == []


def test_the_window_shows_the_tokens_of_an_image_as_one(page, tab):
    attach(tab, ("cat.png", file()))
    tab.talk("look here", "and now")
    tab.button("Look inside the window").click()
    panel = tab.page.get_by_role("complementary", name="Inside the model")
    image = panel.get_by_role("option", name="<image> × 4", exact=True)
    expect(image).to_have_count(1)
    image.hover()
    expect(panel.get_by_role("tooltip")).to_contain_text("tokens 2 to 5: cached")
    panel.get_by_role("radio", name="Text").check()
    expect(panel.get_by_role("option", name="<image> × 4", exact=True)).to_have_count(1)
    panel.get_by_text("Turns in the window").click()
    expect(panel).to_contain_text("[image cat.png] look here")
