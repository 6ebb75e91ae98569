"""Images of chat requests: parts of type image_url, and the token ids of their pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.runtime.errors import BareloopError, quote
from engine.runtime.pictures import parse_data_url
from engine.serve.protocol.errors import ApiError

if TYPE_CHECKING:
    from engine.decoding.images import PromptImages

TYPE = "image_url"
SHAPE = '{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}'
MAX_USED = 768 * 2**20  # bytes in memory of all images of a model. One of 100 kB may be 13 MB until it is computed
DETAILS = (None, "auto", "high")  # values of `detail` that change nothing: pictures are split as the checkpoint says


def find_images(messages: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """The place, such as messages[0].content[1].image_url.url, and URL of each image. Malformed parts are left out."""
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        for index, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, Mapping) and part.get("type") == TYPE:
                image = part.get(TYPE)
                url = image.get("url") if isinstance(image, Mapping) else None
                if isinstance(url, str):
                    yield f"messages[{number}].content[{index}].{TYPE}.url", url


def read_part(part: Mapping[str, Any], place: str) -> dict[str, Any]:
    """An image part -> {"type": "image", "image": the bytes of the file}. Nothing is fetched.

    Raises `ApiError` (400) for another shape, and for a URL that is not an image in base64.
    """
    image = part.get(TYPE)
    if not isinstance(image, Mapping):
        raise _refused(f"{place}.{TYPE}", f"must be an object, as in {SHAPE}, not {quote(image)}")
    url, detail = image.get("url"), image.get("detail")
    at = f"{place}.{TYPE}.url"
    if not isinstance(url, str):
        raise _refused(at, f"must be text, as in {SHAPE}, not {quote(url)}")
    if not isinstance(detail, str | None) or detail not in DETAILS:
        wanted = "leave it out, as images are split as the model's checkpoint says"
        raise _refused(f"{place}.{TYPE}.detail", f"= {quote(detail)} is not supported: {wanted}")
    if url[:8].lower().startswith(("http://", "https://", "file:")):
        reason = "the server fetches nothing, as it may reach what a client must not"
        raise _refused(at, f"= {quote(url)}: {reason}; send the file itself, as data:image/png;base64,…")
    try:
        return {"type": "image", "image": parse_data_url(url)}
    except BareloopError as error:
        raise ApiError(400, f"{at}: {error}", at) from error


class RequestImages:
    """The images of one request, for its chat template: they are encoded one by one, in the order of the messages."""

    def __init__(self, images: PromptImages, places: Sequence[str], max_tokens: int) -> None:
        """`images`: whose scope is the client's, as requests of another one share no ids, and so nothing that is
        cached. `places`: of all images, for messages. `max_tokens`: of all images together; a request that has more is
        refused before the others are decoded.
        """
        self._images, self._max_tokens = images, max_tokens
        self._places = iter(places)
        self._tokens = 0

    @property
    def pinned(self) -> Sequence[object]:
        """What keeps the images in memory as long as it is held."""
        return self._images.pinned

    def encode(self, source: str | Path | bytes) -> list[int]:
        """Token ids of the next image. Raises `ApiError`: 400 that names its place, 429 while there is no memory."""
        place = next(self._places)
        if not isinstance(source, bytes):  # the server reads no files for its clients
            raise _refused(place, "is not the bytes of an image")
        if (used := self._images.library.used_bytes) > MAX_USED:
            message = f"the images of the requests that are running take {used / 2**20:,.0f} MB: try again later"
            raise ApiError(429, message, code="rate_limit_exceeded", headers={"retry-after": "1"})
        try:
            ids = self._images.encode(source)
        except BareloopError as error:
            raise ApiError(400, f"{place}: {error}", place) from error
        self._tokens += len(ids)
        if self._tokens > self._max_tokens:
            raise ApiError(
                400,
                f"{place}: the images up to this one have {self._tokens:,} tokens, and the window is "
                f"{self._max_tokens:,}; send fewer images",
                param=place,
                code="context_length_exceeded",
                kind="exceed_context_size_error",
                extra={"n_prompt_tokens": self._tokens, "n_ctx": self._max_tokens},
            )
        return ids


def _refused(place: str, message: str) -> ApiError:
    return ApiError(400, f"{place} {message}", place)
