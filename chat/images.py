"""The content of a message: text, or images and text. No model, no torch, no screen.

    "What is it?"
    [{"type": "image", "image": "data:image/png;base64,…", "name": "cat.png"}, {"type": "text", "text": "What is it?"}]

Images come first, then one text, which may be empty. An image is a data: URL of the file's own bytes, so that a
conversation has all that was said, and no text of a file or request can name a path. Only a user's message has images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import local_path
from engine.runtime.pictures import (
    MAX_BYTES,
    MAX_DATA_URL,
    data_url,
    data_url_header,
    parse_data_url,
    picture_bytes,
    picture_size,
    read_picture,
)
from engine.runtime.wording import plural

MAX_NAME = 80  # characters
UNNAMED = "image"

ImagePart = Mapping[str, Any]  # {"type": "image", "image": a data: URL, "name": of its file}
Content = str | Sequence[Mapping[str, Any]]


def content_of(text: str, images: Sequence[ImagePart] = ()) -> Content:
    """The content of a message with this text after these images."""
    return [*images, {"type": "text", "text": text}] if images else text


def text_of(content: Content) -> str:
    """The text of a message, without its images."""
    return content if isinstance(content, str) else str(content[-1]["text"])


def images_of(content: Content) -> list[ImagePart]:
    """The images of a message."""
    return [] if isinstance(content, str) else list(content[:-1])


def with_text(content: Content, text: str) -> Content:
    """The same images with another text."""
    return content_of(text, images_of(content))


def shown(content: Content) -> str:
    """A message where only text can be shown: `[image cat.png]` for each image, one a line, above the text."""
    labels = [f"[image {image['name']}]" for image in images_of(content)]
    return "\n".join([*labels, *([text] if (text := text_of(content)) or not labels else [])])


def count_images(messages: Sequence[Mapping[str, Any]]) -> int:
    """How many images these messages have."""
    return sum(len(images_of(message["content"])) for message in messages)


def without_images(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The same messages with their texts alone."""
    return [{**message, "content": text_of(message["content"])} for message in messages]


def read_image(name: str) -> ImagePart:
    """The image of a file, as a part of a message. Raises as `image_part`."""
    path = local_path(name)
    return image_part(picture_bytes(path), path.name)


def image_part(data: bytes, name: str = "") -> ImagePart:
    """An image as a part of a message, from the bytes of its file. `name`: of the file, as lists show it.

    Raises `BareloopError` in one line if it is too large, or not an image that can be read.
    """
    name = file_name(name)
    try:
        read_picture(data)
        return {"type": "image", "image": data_url(data), "name": name}
    except BareloopError as error:
        raise UsageError(f"{name}: {error}") from None


def image_bytes(image: ImagePart) -> bytes:
    """The bytes of an image's file. Raises `BareloopError` if the data: URL is damaged."""
    return parse_data_url(image["image"])


def described(image: ImagePart, tokens: int | None = None) -> str:
    """An image with its name, its size, and how many tokens it takes in a prompt: `[image cat.png, 1,280 x 720]`."""
    width, height = picture_size(image_bytes(image))
    count = "" if tokens is None else f", {plural(tokens, 'token')}"
    return f"[image {image['name']}, {width:,} x {height:,}{count}]"


def checked_content(content: Any) -> Content:
    """The content of a user's message from a file or a request, without what is not known of it.

    Raises `UsageError` if it is neither text nor images and a text, and for an image that is not a data: URL or too
    large. Whether an image can be read is not tried.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise UsageError("content is a text, or a list of images and a text")
    *images, last = content
    if not (isinstance(last, dict) and last.get("type") == "text" and isinstance(last.get("text"), str)):
        raise UsageError("the last part of a content with images is a text part")
    return content_of(last["text"], [_checked_image(image) for image in images])


def _checked_image(part: Any) -> ImagePart:
    if not isinstance(part, dict) or part.get("type") != "image" or not isinstance(part.get("image"), str):
        raise UsageError("every part before the text is an image: a data: URL with its name")
    url, name = part["image"], part.get("name")
    name = file_name(name if isinstance(name, str) else "")
    if data_url_header(url) is None:
        raise UsageError(f"{name} is not a data: URL of an image (data:image/png;base64,…); files are not read here")
    if len(url) > MAX_DATA_URL:
        raise UsageError(f"{name} has more than {MAX_BYTES / 1e6:.0f} MB, the most that an image may have")
    return {"type": "image", "image": url, "name": name}


def file_name(name: str) -> str:
    """The name of an image's file without its folder, on one line of printable characters, clipped."""
    last = PurePath(name.replace("\\", "/")).name
    line = " ".join("".join(c if c.isprintable() else " " for c in last).split()) or UNNAMED
    return line if len(line) <= MAX_NAME else f"{line[: MAX_NAME - 1]}…"
