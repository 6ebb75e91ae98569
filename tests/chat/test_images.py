"""The content of messages with images: its parts, and what is refused in one line."""

from __future__ import annotations

import pytest

from chat import images
from chat.images import checked_content, content_of, count_images, image_bytes, image_part, shown, text_of
from engine.runtime.errors import BareloopError
from tests.engine.models.vision.tiny import picture

DOT = {"type": "text", "text": "."}


def part(name: str = "cat.png", url: str = "data:image/png;base64,AAAA") -> dict[str, str]:
    return {"type": "image", "image": url, "name": name}


def test_a_message_without_images_is_a_text_and_with_images_they_come_first():
    assert content_of("Hi") == text_of("Hi") == shown("Hi") == checked_content("Hi") == "Hi"
    content = content_of("What is it?", [part(), part("dog.png")])
    assert content == [part(), part("dog.png"), {"type": "text", "text": "What is it?"}]
    assert text_of(content) == "What is it?"
    assert shown(content) == "[image cat.png]\n[image dog.png]\nWhat is it?"
    assert images.with_text(content, "And now?") == [part(), part("dog.png"), {"type": "text", "text": "And now?"}]
    assert shown(content_of("", [part()])) == "[image cat.png]"
    assert shown("") == ""
    assert count_images([{"content": content}, {"content": "Hi"}]) == 2
    assert images.without_images([{"role": "user", "content": content}]) == [{"role": "user", "content": "What is it?"}]


def test_an_image_has_the_bytes_of_its_file_and_is_described_by_its_size():
    data = picture(60, 40)
    image = image_part(data, "/home/someone/cat.png")
    assert image["image"].startswith("data:image/png;base64,") and image_bytes(image) == data
    assert images.described(image) == "[image cat.png, 60 x 40]"
    assert images.described(image, 1104) == "[image cat.png, 60 x 40, 1,104 tokens]"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("C:\\pictures\\cat.png", "cat.png"),
        ("a\nb\x1b[31m.png", "a b [31m.png"),
        ("", "image"),
        ("/", "image"),
        ("x" * 100, "x" * 79 + "…"),
    ],
)
def test_a_name_is_one_short_line(name, expected):
    assert images.file_name(name) == expected


@pytest.mark.parametrize("data", [b"", b"no image", picture(60, 40)[:-40], b"%PDF-1.7", b"<svg/>", bytes(20_000_001)])
def test_what_is_not_an_image_is_refused_in_one_line_with_its_name(data):
    with pytest.raises(BareloopError, match=r"^cat\.png: [^\n]+$"):
        image_part(data, "cat.png")


def test_what_is_not_known_of_a_content_is_left_out():
    content = [part() | {"path": "/etc/passwd"}, DOT | {"other": 1}]
    assert checked_content(content) == [part(), DOT]
    assert checked_content([part() | {"name": 3}, DOT])[0]["name"] == "image"
    assert checked_content([DOT]) == "."


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (3, "content is a text, or a list"),
        ([], "content is a text, or a list"),
        ([part()], "the last part"),
        ([DOT, part()], "the last part"),
        ([DOT, DOT], "every part before the text is an image"),
        ([{"type": "image"}, DOT], "every part before the text is an image"),
        ([part(url="/etc/passwd"), DOT], "cat.png is not a data: URL of an image"),
        ([part(url="http://127.0.0.1/cat.png"), DOT], "cat.png is not a data: URL of an image"),
        ([part(url="data:text/html;base64,AAAA"), DOT], "cat.png is not a data: URL of an image"),
        ([part(url="data:image/png;base64," + "A" * 40_000_000), DOT], "cat.png has more than 20 MB"),
    ],
)
def test_content_of_a_file_that_names_anything_but_data_is_refused(content, line):
    with pytest.raises(BareloopError, match=f"^{line}") as refused:
        checked_content(content)
    assert "\n" not in str(refused.value)
