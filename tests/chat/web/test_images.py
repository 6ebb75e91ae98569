"""Images between browser and server: sent with a message, told of by ids, sent back, given back, kept in the file."""

from __future__ import annotations

import json
import struct
import zlib
from http.client import HTTPConnection

import pytest

from chat import store
from chat.web.app import MAX_BODY
from tests.chat.web.pictures import KINDS, file, sent, url
from tests.chat.web.scripted import GUARD, KEY, refuse

CONTENT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def say(browser, id, text, *images, status=202, tab="me"):
    """Send a message with images. -> the error's message, if it is refused"""
    answer = browser.post(f"conversations/{id}/line", status, line=text, tab=tab, images=list(images))
    return answer.get("error", {}).get("message")


def talk(browser, id, text, *images):
    """The same, and wait for the reply. -> the last turn"""
    tab = browser.listen(id)
    turns = len(tab.next("snapshot")["value"]["turns"])
    say(browser, id, text, *images)
    return tab.rest(lambda value: len(value["turns"]) > turns)["turns"][-1]


def picture(browser, id, image, status=200):
    """The response to a request for an image."""
    answer = browser.http.get(f"/web/conversations/{id}/images/{image}")
    assert answer.status_code == status, answer.text
    return answer


def bomb(width=60_000, height=60_000):
    """A small PNG file whose header announces a huge image."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_a_message_with_images_reaches_the_model_and_tabs_are_told_of_them_by_ids(page, browser):
    id = browser.new()
    tab = browser.listen(id)
    page.script.say("Two", " cats")
    say(browser, id, "What is this?", sent("cat.png"), sent("other.png", "blue"))
    told = tab.next("started")
    assert (told["message"], [image["name"] for image in told["images"]]) == (
        "What is this?", ["cat.png", "other.png"],
    )  # fmt: skip
    turn = tab.rest(lambda value: value["turns"])["turns"][0]
    assert (turn["message"], turn["images"], turn["reply"]) == ("What is this?", told["images"], "Two cats")
    (message,) = page.script.prompts[-1]
    assert [part["type"] for part in message["content"]] == ["image", "image", "text"]
    assert [part["image"] for part in message["content"][:2]] == [url(file("red")), url(file("blue"))]
    assert message["content"][2]["text"] == "What is this?"
    assert not any("base64" in json.dumps(event) for event in tab.events)  # their bytes are sent once, when asked for


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_sent_back_as_it_came(browser, kind):
    id, content = browser.new(), file(kind=kind)
    turn = talk(browser, id, "look", {"name": f"cat.{kind}", "image": url(content, KINDS[kind])})
    answer = picture(browser, id, turn["images"][0]["id"])
    assert answer.content == content
    assert answer.headers["content-type"] == KINDS[kind]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_images_are_there_after_the_conversation_was_opened_again(page, browser):
    id = browser.new()
    before = talk(browser, id, "look", sent())
    assert store.load(store.find(id)).turns[0][0]["content"][0]["image"] == url(file())
    page.library._open.clear()
    value = browser.listen(id).next("snapshot")["value"]
    assert value["turns"][0]["images"] == before["images"]
    assert picture(browser, id, before["images"][0]["id"]).content == file()


def test_only_who_has_the_key_sees_an_image_and_only_of_its_conversation(page, browser):
    import httpx2

    id, other = browser.new(), browser.new()
    (image,) = talk(browser, id, "look", sent())["images"]
    talk(browser, other, "nothing to see")
    picture(browser, other, image["id"], 404)
    picture(browser, id, "../../state", 404)
    picture(browser, id, "x", 404)
    with httpx2.Client(base_url=page.base) as stranger:
        assert stranger.get(f"/web/conversations/{id}/images/{image['id']}").status_code == 401


def test_a_message_may_have_images_and_no_text(page, browser):
    page.script.say("A cat")
    id = browser.new()
    turn = talk(browser, id, "", sent())
    assert (turn["message"], turn["reply"], len(turn["images"])) == ("", "A cat", 1)
    assert browser.get("conversations")["conversations"][0]["title"] == "[image cat.png]"
    assert say(browser, id, "") is None  # a message without anything is taken and refused, as before
    tab = browser.listen(id)
    assert len(tab.rest(lambda value: True)["turns"]) == 1


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ("cat", "use a list of objects"),
        (["cat"], "use a list of objects"),
        ([{}], "use a data: URL"),
        ([{"image": 7, "name": "cat.png"}], "use a data: URL"),
        ([{"image": url(), "name": 7}], "a text as its name"),
        ([{"image": "/etc/passwd", "name": "cat.png"}], "use a data: URL"),
        ([{"image": "file:///etc/passwd"}], "use a data: URL"),
        ([{"image": "http://127.0.0.1/cat.png"}], "use a data: URL"),
        ([{"image": "data:text/html;base64,PGI+"}], "use a data: URL"),
        ([{"image": "data:image/png;base64,?"}], "not base64"),
        ([{"image": f"data:image/png{';a=' * 100};base64,AA=="}], "use a data: URL"),
        ([{"image": url(b"no image"), "name": "cat.png"}], "cat.png"),
        ([{"image": url(file()[:60]), "name": "cut.png"}], "cut.png"),
        ([{"image": url(bomb()), "name": "bomb.png"}], "bomb.png"),
        ([{"image": url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "name": "a.svg"}], "a.svg"),
        ([sent()] * 9, "9 images: use up to 8"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line_and_changes_nothing(page, browser, images, reason):
    id = browser.new()
    message = browser.post(f"conversations/{id}/line", 400, line="look", tab="me", images=images)["error"]["message"]
    assert reason in message
    assert "\n" not in message
    assert len(message) < 300
    assert page.script.prompts == []
    assert browser.listen(id).next("snapshot")["value"]["turns"] == []


def test_a_body_that_is_too_large_is_refused_before_it_is_read(page, browser):
    connection = HTTPConnection("127.0.0.1", page.port, timeout=GUARD)
    connection.putrequest("POST", f"/web/conversations/{browser.new()}/line")
    cookie = f"bareloop-{page.port}={KEY}"
    headers = {"content-type": "application/json", "content-length": f"{MAX_BODY + 1}", "cookie": cookie}
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()  # and nothing follows
    answer = connection.getresponse()
    assert answer.status == 413
    assert "use up to 64,000,000" in json.loads(answer.read())["error"]["message"]
    connection.close()


def test_the_name_of_a_file_is_one_line_without_folders(browser):
    turn = talk(
        browser, browser.new(), "look", sent("/home/me/a\nb\u202e.png"), sent("", "blue"), sent("n" * 300, "lime")
    )
    first, second, third = [image["name"] for image in turn["images"]]
    assert first == "a b .png"
    assert second
    assert len(third) < 100


def test_an_image_that_was_refused_a_reply_is_given_back_with_its_text(page, browser):
    id = browser.new()
    tab = browser.listen(id)
    page.script.failure = refuse("no answer")
    say(browser, id, "look", sent())
    draft = tab.next("draft")
    assert (draft["text"], draft["tab"], [image["name"] for image in draft["images"]]) == ("look", "me", ["cat.png"])
    assert picture(browser, id, draft["images"][0]["id"]).content == file()
    page.script.failure = refuse("no answer")
    say(browser, id, "", sent("blue.png", "blue"))
    again = tab.next("draft", 2)
    assert (again["text"], [image["name"] for image in again["images"]]) == ("", ["blue.png"])
    other = browser.listen(id)
    assert other.next("draft")["images"] == again["images"]


def test_a_message_with_an_image_that_a_kill_left_without_a_reply_is_given_back(page, browser):
    content = [{"type": "image", "image": url(), "name": "cat.png"}, {"type": "text", "text": "look"}]
    id = browser.post("import", name="f", content=[*CONTENT, {"role": "user", "content": content}])["id"]
    tab = browser.listen(id)
    draft = tab.next("draft")
    assert (draft["text"], [image["name"] for image in draft["images"]]) == ("look", ["cat.png"])
    assert picture(browser, id, draft["images"][0]["id"]).content == file()


def test_images_with_a_command_are_refused_and_given_back(page, browser):
    id = browser.new()
    browser.chat(id, "hi")
    tab = browser.listen(id)
    say(browser, id, "/retry", sent())
    assert "images go with a message" in tab.wait(
        lambda tab: [each for each in tab.of("notice") if each["kind"] == "error"]
    )[0]["text"]  # fmt: skip
    assert [image["name"] for image in tab.next("draft")["images"]] == ["cat.png"]


def test_an_edited_message_keeps_its_images(page, browser):
    id = browser.new()
    before = talk(browser, id, "look", sent())
    tab = browser.listen(id)
    browser.line(id, "/branch 1 look closer")
    assert tab.next("started")["images"] == before["images"]
    turn = tab.rest(lambda value: value["turns"][0]["version"][1] == 2)["turns"][0]
    assert (turn["message"], turn["images"]) == ("look closer", before["images"])


def test_the_message_is_saved_with_its_images_while_the_model_is_loaded(page, browser, data):
    page.models.may_load.clear()
    id = browser.new()
    tab = browser.listen(id)
    say(browser, id, "look", sent())
    tab.next("loading")
    content = store.load(store.find(id)).turns[0][0]["content"]
    assert (content[0]["image"], content[1]["text"]) == (url(file()), "look")
    page.models.may_load.set()
    tab.rest(lambda value: value["turns"])


def test_a_conversation_is_exported_with_its_images_and_imported_again(browser):
    id = browser.new()
    talk(browser, id, "look", sent())
    saved = browser.http.get(f"/web/conversations/{id}/export?format=json").json()
    copy = browser.post("import", name="copy.json", content=saved)["id"]
    (turn,) = browser.listen(copy).next("snapshot")["value"]["turns"]
    assert picture(browser, copy, turn["images"][0]["id"]).content == file()
    markdown = browser.http.get(f"/web/conversations/{id}/export?format=markdown").text
    assert "**User**\n\n[image cat.png]\nlook" in markdown
    assert "base64" not in markdown


@pytest.mark.parametrize(
    "image", ["/etc/passwd", "http://127.0.0.1/a.png", "file:///etc/passwd", 7, "data:text/html;base64,PGI+"]
)
def test_an_imported_file_cannot_name_another_file_or_address(browser, image):
    part = {"type": "image", "image": image, "name": "cat.png"}
    content = [{"role": "user", "content": [part, {"type": "text", "text": "look"}]}, CONTENT[1]]
    assert browser.post("import", 400, name="f", content=content)["error"]["message"]


@pytest.mark.parametrize("kind", ["svg+xml", "x-icon", "tiff"])
def test_an_imported_image_that_is_no_photograph_is_never_sent_to_a_browser(browser, kind):
    content = url(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", f"image/{kind}")
    part = {"type": "image", "image": content, "name": "a.svg"}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "look"}]}, CONTENT[1]]
    id = browser.post("import", name="f", content=messages)["id"]
    (turn,) = browser.listen(id).next("snapshot")["value"]["turns"]
    picture(browser, id, turn["images"][0]["id"], 404)


def test_search_finds_the_name_of_an_image_and_not_its_bytes(browser):
    id = browser.new()
    talk(browser, id, "look", sent("holiday.png"))
    assert browser.get("search?q=HOLIDAY")["ids"] == [id]
    assert browser.get("search?q=iVBOR")["ids"] == []
    assert browser.get("search?q=look")["ids"] == [id]


def test_a_turn_that_leaves_the_window_says_that_its_image_does(page, browser):
    page.models.window = 120
    id = browser.new(settings={"strategy": "truncate", "reserve": 40})
    talk(browser, id, "look " + "word " * 20, sent())
    tab = browser.listen(id)
    for number in range(3):
        talk(browser, id, f"{number} " + "word " * 20)
    notices = [each["text"] for each in tab.of("notice") if each["kind"] == "dropped"]
    assert any("1 image" in text for text in notices), notices


def test_a_model_that_takes_no_images_is_not_given_a_conversation_with_them(page, browser):
    page.script.blind = {"other"}
    id = browser.new()
    talk(browser, id, "look", sent())
    tab = browser.listen(id)
    assert tab.next("snapshot")["value"]["takes_images"]
    browser.line(id, "/model other")
    error = tab.wait(lambda tab: [each for each in tab.of("notice") if each["kind"] == "error"])[0]["text"]
    assert error == "this conversation has images, and other takes none: begin a new conversation for it"
    assert tab.rest(lambda value: True)["model"] == "scripted"
    plain = browser.new(model="other")
    assert not browser.chat(plain, "hello")["takes_images"]


def test_a_real_model_sees_an_image_and_goes_on_without_computing_it_again(data, tmp_path):
    pytest.importorskip("transformers")
    from tests.chat.web.test_web_program import Program
    from tests.engine.models.vision.tiny import tiny_checkpoint

    tiny = tiny_checkpoint(tmp_path / "tiny")
    with Program("-m", str(tiny.folder), "--max-new-tokens", "4", "--reserve", "8") as program:
        browser = program.browser
        id = browser.new()
        first = talk(browser, id, "What is this?", sent())["statistics"]
        second = talk(browser, id, "And what else?")["statistics"]
        assert first["prompt_tokens"] > tiny.tokens_per_tile
        assert second["cached_tokens"] >= first["prompt_tokens"]
        window = browser.get(f"conversations/{id}/window?scored=0")
        texts = [token[0] for token in window["tokens"]]
        assert texts.count("<image>") % tiny.tokens_per_tile == 0
        assert texts.count("<image>") > 0
        assert window["cached"] == second["cached_tokens"]
        assert browser.get(f"conversations/{id}/window?scored=1")["tokens"]
        assert browser.get(f"conversations/{id}/tokens?turn=0")["tokens"]
        program.end()
