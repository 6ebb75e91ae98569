"""Image files of users: read within limits, whatever they are. Loads without torch, and Pillow only when it is used."""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.runtime.errors import BareloopError, first_line, is_out_of_memory, quote

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES = 20_000_000  # of an image file: photographs have 2 to 15 MB
MAX_PIXELS = 50_000_000  # a pixel takes 4 bytes, twice while it is converted, and twice more in WebP's decoder
MAX_SIDE = 100_000  # pixels; a filter's table for resizing takes 48 bytes per pixel of a side
MAX_SCANNED = 10_000_000_000  # pixels of a JPEG file times its scans: each goes over all pixels, and may have 10 bytes
SCAN = b"\xff\xda"  # begins a scan of a JPEG file
MAX_HEADER = 200  # characters of a data: URL before its bytes
MAX_DATA_URL = MAX_HEADER + MAX_BYTES * 3 // 2  # characters: base64 is 4/3 as long, with line breaks a little more
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # no other parser of Pillow is reached
MAX_NAME = 70  # characters of a path in a message
BANDS = 256  # rows that are blended at once, which bounds the memory for it
WHITE = (255, 255, 255, 255)
ORIENTATION = 0x0112  # EXIF's tag
DATA_URL = re.compile(r"data:image/[\w.+-]+(?:;[\w.+-]+=[\w.+-]*)*;base64,", re.IGNORECASE)


def picture_bytes(source: str | Path | bytes) -> bytes:
    """The bytes of an image file: of a path, of a `data:` URL, or bytes as they are.

    Raises `BareloopError` if there is no such file, or more than `MAX_BYTES`. Whether it is an image is not looked at.
    """
    if isinstance(source, str) and source[:5].lower() == "data:":
        return parse_data_url(source)
    if isinstance(source, bytes):
        content = source
    else:
        try:
            path = Path(source).expanduser()
            if path.exists() and not path.is_file():  # a pipe or a device may never end
                raise BareloopError(f"{_name(source)} is not a file")
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except (OSError, RuntimeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise BareloopError(f"cannot read {_name(source)}: {reason}") from None
    if len(content) > MAX_BYTES:
        raise BareloopError(
            f"{_name(source)} has more than {MAX_BYTES / 1e6:.0f} MB; make it smaller, or save it as JPEG"
        )
    return content


def data_url_header(text: str) -> re.Match[str] | None:
    """What is in front of the bytes in a `data:` URL of an image; None if it is no such URL."""
    return DATA_URL.match(text, 0, MAX_HEADER)


def parse_data_url(text: str) -> bytes:
    """The bytes in a URL "data:image/png;base64,…". Nothing is ever fetched: any other URL raises `BareloopError`."""
    header = data_url_header(text)
    if header is None:
        raise BareloopError(f"an image's URL is data:image/…;base64,… and no other is fetched, not {quote(text)}")
    if len(text) > MAX_DATA_URL:
        raise BareloopError(f"the image has more than {MAX_BYTES / 1e6:.0f} MB; make it smaller, or save it as JPEG")
    try:
        content = base64.b64decode("".join(text[header.end() :].split()).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeError) as error:
        raise BareloopError(f"the image's data: URL is not base64: {first_line(error)}") from None
    return picture_bytes(content)


def data_url(source: str | Path | bytes) -> str:
    """The URL "data:image/…;base64,…" of an image file. Its format and size are checked, its pixels are not decoded."""
    content = picture_bytes(source)
    with _open(content, _name(source)) as image:
        kind = "jpeg" if image.format == "MPO" else str(image.format).lower()  # MPO: JPEG files of some cameras
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def picture_size(source: str | Path | bytes) -> tuple[int, int]:
    """(width, height) in pixels as it is seen, which EXIF may turn.

    Pixels are decoded of a PNG without EXIF before them only, as it may come after them.
    """
    with _open(picture_bytes(source), _name(source)) as image:
        return image.size if _orientation(image) < 5 else (image.height, image.width)


def read_picture(source: str | Path | bytes, content: bytes | None = None) -> Image:
    """Decode an image file: -> mode RGB, turned as EXIF says, on white where it is transparent, the first frame.

    `content`: its bytes, if they have been read. 16 bits become 8 by their upper half. Raises `BareloopError` for a
    file that is not PNG, JPEG, WebP, GIF or BMP, is damaged, or exceeds `MAX_BYTES`, `MAX_PIXELS`, `MAX_SIDE` or
    `MAX_SCANNED`.
    """
    name = _name(source)
    try:
        return _turned(*_decode(picture_bytes(source) if content is None else content, name))
    except MemoryError as error:
        raise _damaged(name, error) from None


def _decode(content: bytes, name: str) -> tuple[Image, int]:
    """The image in RGB, and its orientation. What the decoder holds is freed before the image is turned."""
    with _open(content, name) as image:
        try:
            image.load()
            return _rgb(image), _orientation(image)
        except Exception as error:  # decoders raise whatever damaged data leads to
            raise _damaged(name, error) from None


def _name(source: str | Path | bytes) -> str:
    """The image for a message: of a long path the end, which has the file's name."""
    if not isinstance(source, Path) and not (isinstance(source, str) and source[:5].lower() != "data:"):
        return "the image"
    name = str(source)
    return f"the image {quote(name if len(name) <= MAX_NAME else '…' + name[-MAX_NAME:])}"


def _open(content: bytes, name: str) -> Image:
    """An image whose header has been read and whose size is within the limits."""
    pillow = _pillow()
    try:
        image = pillow.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
    except pillow.DecompressionBombError:
        raise BareloopError(f"{name} has more than {MAX_PIXELS:,} pixels; make it smaller") from None
    except pillow.UnidentifiedImageError:
        raise BareloopError(f"{name} is not a PNG, JPEG, WebP, GIF or BMP file, or is damaged; convert it") from None
    except Exception as error:  # as in `_decode`
        raise _damaged(name, error) from None
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise BareloopError(
            f"{name} has {width:,} x {height:,} pixels; the limits are {MAX_PIXELS:,} pixels and {MAX_SIDE:,} a side; "
            "make it smaller"
        )
    scans = content.count(SCAN) if image.format in ("JPEG", "MPO") else 0
    if scans * width * height > MAX_SCANNED:
        raise BareloopError(f"{name} is a JPEG file of {scans:,} scans, and usual ones have 10; save it anew")
    return image


@cache
def _pillow() -> Any:
    """The module PIL.Image."""
    from PIL import Image

    # Pillow warns about the limit that `_open` sets lower, and about metadata that is not used. A filter for good, as
    # `warnings.catch_warnings` is not for several threads.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return Image


def _damaged(name: str, error: Exception) -> BareloopError:
    if is_out_of_memory(error):
        return BareloopError(f"not enough memory to decode {name}; make it smaller")
    return BareloopError(f"{name} is damaged or incomplete: {first_line(error)}")


def _orientation(image: Image) -> int:
    """EXIF's orientation, 1 to 8; 1 (upright) if there is none, or none that can be read."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata is no reason not to show a picture
        return 1
    return value if value in range(1, 9) else 1


def _turned(image: Image, orientation: int) -> Image:
    """The image as it is seen."""
    method = _pillow().Transpose
    turns = {
        2: method.FLIP_LEFT_RIGHT,
        3: method.ROTATE_180,
        4: method.FLIP_TOP_BOTTOM,
        5: method.TRANSPOSE,
        6: method.ROTATE_270,
        7: method.TRANSVERSE,
        8: method.ROTATE_90,
    }
    return image if orientation == 1 else image.transpose(turns[orientation])


def _rgb(image: Image) -> Image:
    """The image in RGB: Pillow's conversion, and alpha on white as in transformers."""
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    pillow = _pillow()
    result = pillow.new("RGB", image.size)
    for top in range(0, image.height, BANDS):
        box = (0, top, image.width, min(top + BANDS, image.height))
        band = image.crop(box).convert("RGBA")
        white = pillow.new("RGBA", band.size, WHITE)
        result.paste(pillow.alpha_composite(white, band).convert("RGB"), box)
    return result


def _eight_bits(image: Image) -> Image:
    """A grey image of 16 bits in 8, white where it is transparent. Pillow's own conversion clips at 255."""
    import numpy as np

    levels = np.asarray(image)
    grey = np.clip(levels >> 8, 0, 255).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[levels == transparent] = 255
    return _pillow().fromarray(grey)
