"""The images of a conversation on their way between browser and server: received, named by an id, and sent back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from chat.images import ImagePart, image_bytes, image_part
from engine.runtime.errors import BareloopError, quote
from engine.runtime.pictures import MAX_HEADER, data_url_header
from engine.serve.protocol.errors import ApiError

MAX_IMAGES = 8  # of a message
KINDS = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp")  # others are not sent to a browser


def received(images: Any, shown: Images) -> list[ImagePart]:
    """The images of a message that a browser sends: [{"image": data: URL, "name"}].

    Decodes them, and gives them ids in `shown`, which takes a while: call it in a thread.
    Raises `ApiError` 400 for anything else, `BareloopError` for an image that cannot be read.
    """
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise ApiError(400, f"images are {quote(images)}: use a list of objects")
    if len(images) > MAX_IMAGES:
        raise ApiError(400, f"the message has {len(images):,} images: use up to {MAX_IMAGES}")
    parts = [_received(image) for image in images]
    shown.tell(parts)
    return parts


def _received(image: Mapping[str, Any]) -> ImagePart:
    url, name = image.get("image"), image.get("name", "")
    if not isinstance(url, str) or not isinstance(name, str) or data_url_header(url) is None:
        raise ApiError(400, f"image is {quote(url)}: use a data: URL (data:image/png;base64,…), and a text as its name")
    return image_part(image_bytes({"type": "image", "image": url, "name": name}), name)


class Images:
    """The images that the tabs of a conversation have been told of, by ids: digests, so that an id never changes.

    Any thread may use it. They are kept until the conversation is no longer in memory: a tab may ask late.
    """

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}  # by the data: URL, whose hash Python keeps
        self._images: dict[str, ImagePart] = {}

    def tell(self, images: Iterable[ImagePart]) -> list[dict[str, str]]:
        """What tabs are told of images: [{"id", "name"}]."""
        return [{"id": self._id(image), "name": image["name"]} for image in images]

    def find(self, id: str) -> tuple[bytes, str]:
        """The file of an image and its media type. Raises `ApiError` 404 if there is none that a browser can show."""
        image = self._images.get(id)
        kind = "" if image is None else image["image"][:MAX_HEADER].partition(";")[0].lower().removeprefix("data:")
        if image is None or kind not in KINDS:
            raise ApiError(404, f"there is no image {quote(id)}")
        try:
            return image_bytes(image), kind
        except BareloopError as error:  # a damaged one of a file
            raise ApiError(404, f"{image['name']}: {error}") from None

    def _id(self, image: ImagePart) -> str:
        url = image["image"]
        if url not in self._ids:
            id = hashlib.sha256(url.encode()).hexdigest()[:32]
            self._images[id] = image
            self._ids[url] = id
        return self._ids[url]
