"""A message's content: text, or a list of parts, {"type": "text", "text": …} and {"type": "image", "image": source}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from engine.runtime.errors import BareloopError, quote
from engine.text.tokenizer import check_text

Source = str | Path | bytes  # an image: a path, the text of a data: URL, or the bytes of a file
Part = dict[str, Any]


class ImageEncoder(Protocol):
    """What turns a prompt's images into token ids."""

    def encode(self, source: str | Path | bytes) -> list[int]:
        """Token ids of one image in a prompt: its control tokens, and ids of its own for its vectors."""


def read_parts(content: Any, number: int, takes_images: bool) -> list[Part]:
    """Check the content of message `number`: -> its parts. Other keys of a part are dropped.

    Raises `BareloopError` for other parts, for text that is not valid Unicode, and for images if there is no use.
    """
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    elif not isinstance(content, list | tuple):
        parts = "text or image" if takes_images else "text"
        raise BareloopError(
            f"message {number}: content is text or a list of {parts} parts, not {type(content).__name__}"
        )
    return [_read_part(part, number, takes_images) for part in content]


def _read_part(part: Any, number: int, takes_images: bool) -> Part:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind == "text" and isinstance(text := part.get("text"), str):
        try:
            check_text(text)
        except BareloopError as error:
            raise BareloopError(f"message {number}: {error}") from None
        return {"type": "text", "text": text}
    if kind == "image" and not takes_images:
        raise BareloopError(
            f"message {number}: this model takes no images; use a vision-language model such as SmolVLM"
        )
    if kind == "image":
        if not isinstance(source := part.get("image"), str | Path | bytes):
            raise BareloopError(
                f"message {number}: an image part has its file in 'image': a path, a data: URL or bytes"
            )
        return {"type": "image", "image": source}
    allowed = "text and image parts" if takes_images else "text parts"
    raise BareloopError(f"message {number}: content of type {quote(kind)} is not supported; use {allowed}")


def image_sources(parts: Sequence[Part]) -> list[Source]:
    """The images among the parts, in order."""
    return [part["image"] for part in parts if part["type"] == "image"]


def without_sources(parts: Sequence[Part]) -> list[Part]:
    """The parts as a template gets them: of an image only that there is one; an empty text if there is no part."""
    parts = parts or [{"type": "text", "text": ""}]
    return [{"type": "image"} if part["type"] == "image" else part for part in parts]


def joined_text(parts: Sequence[Part]) -> str:
    """The text of parts without images, with line breaks between them."""
    return "\n".join(part["text"] for part in parts)
