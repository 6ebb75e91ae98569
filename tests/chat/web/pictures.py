"""Image files for the tests of the page."""

from __future__ import annotations

import base64
import io

from PIL import Image

KINDS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "gif": "image/gif", "bmp": "image/bmp"}


def file(colour: str = "red", size: tuple[int, int] = (24, 16), kind: str = "png") -> bytes:
    """An image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def url(content: bytes | None = None, media_type: str = "image/png") -> str:
    """Its data: URL."""
    return f"data:{media_type};base64,{base64.b64encode(file() if content is None else content).decode()}"


def sent(name: str = "cat.png", colour: str = "red") -> dict[str, str]:
    """An image as the page sends it with a message."""
    return {"name": name, "image": url(file(colour))}
