"""An image to the tiles that a vision tower sees, as Idefics3's and SmolVLM's image processors cut them.

The reference is transformers' `Idefics3ImageProcessorPil`, bit for bit: Pillow's filters, and numpy's rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.runtime.errors import BareloopError, quote
from engine.runtime.files import read_json

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SIDE = 4096  # pixels of a resized image, whatever the file says; transformers' constant
MAX_TILES = 400  # of an image; 8 x 8 + 1 of SmolVLM's size is what `MAX_SIDE` allows
TYPES = ("Idefics3ImageProcessor", "SmolVLMImageProcessor")
FILE, PROCESSOR_FILE = "preprocessor_config.json", "processor_config.json"


@dataclass(frozen=True)
class Tiles:
    """One image's tiles, row by row; the last one is the whole image. rows = columns = 0 if it is that one alone."""

    pixels: NDArray[np.uint8]  # [T, S, S, 3]
    rows: int
    columns: int


@dataclass(frozen=True)
class ImageProcessor:
    """How a checkpoint's images are resized, cut and scaled."""

    tile_size: int  # S, pixels
    longest_edge: int = 4 * 364  # to which an image is resized before it is cut
    splits: bool = True
    resample: int = 1  # Pillow's number of a filter; 1: Lanczos
    scale: float = 1 / 255
    mean: tuple[float, ...] | None = (0.5, 0.5, 0.5)  # None: not normalized
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_seq_len: int | None = None  # vectors of a tile, if processor_config.json says so

    @staticmethod
    def load(folder: Path) -> ImageProcessor:
        """Read preprocessor_config.json, or the same in processor_config.json, as newer checkpoints have it.

        Raises `BareloopError` if there is neither, and for a value that is not implemented.
        """
        path = folder / PROCESSOR_FILE
        processor = read_json(path) if path.exists() else {}
        images = processor.get("image_processor")
        if not isinstance(images, dict):
            path = folder / FILE
            if not path.exists():
                raise BareloopError(f"{folder} has no {FILE}, which says how images are prepared; add the model's")
            images = read_json(path)
        return _read(images, processor.get("image_seq_len"), path)

    def check(self, image_size: int, tokens_per_tile: int) -> None:
        """Raise `BareloopError` if the model takes other tiles than these."""
        if self.tile_size != image_size:
            raise BareloopError(
                f"{FILE}: max_image_size is {self.tile_size} pixels, but the model takes {image_size}; "
                "use the files of one checkpoint"
            )
        if self.image_seq_len not in (None, tokens_per_tile):
            raise BareloopError(
                f"{PROCESSOR_FILE}: image_seq_len is {self.image_seq_len}, but the model has {tokens_per_tile} vectors "
                "a tile; use the files of one checkpoint"
            )

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of an image of so many pixels; (0, 0) if it is one tile."""
        if not self.splits:
            return 0, 0
        width, height = self._multiples(*self._resized(width, height))
        side = self.tile_size
        return (height // side, width // side) if max(width, height) > side else (0, 0)

    def split(self, image: Image) -> Tiles:
        """Resize and cut an image in mode RGB."""
        side = self.tile_size
        rows, columns = self.shape(*image.size)
        image = image.resize(self._resized(*image.size), self.resample)
        if self.splits:  # not at once: each step rounds to 8 bits
            image = image.resize(self._multiples(*image.size), self.resample)
        pixels = np.empty((rows * columns + 1, side, side, 3), np.uint8)
        pixels[-1] = np.asarray(image.resize((side, side), self.resample))
        if rows:
            grid = np.asarray(image).reshape(rows, side, columns, side, 3)
            pixels[:-1] = grid.swapaxes(1, 2).reshape(-1, side, side, 3)
        return Tiles(pixels, rows, columns)

    def normalize(self, tile: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[S, S, 3] from 0 to 255 -> [3, S, S], scaled and normalized."""
        levels = (np.arange(256) * self.scale).astype(np.float32)
        table = np.repeat(levels[None], 3, axis=0)  # a value depends on its level alone
        if self.mean is not None:
            table = (table - np.array([self.mean], np.float32).T) / np.array([self.std], np.float32).T
        return np.stack([table[channel][tile[..., channel]] for channel in range(3)])

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) with the longer side as the file says, and the shorter one even."""
        ratio = width / height
        edge = self.longest_edge
        if width >= height:
            width, height = edge, int(edge / ratio)
            height += height % 2
        else:
            width, height = int(edge * ratio), edge
            width += width % 2
        width, height = max(width, 1), max(height, 1)
        ratio = width / height
        if width >= height and width > MAX_SIDE:
            width, height = MAX_SIDE, int(MAX_SIDE / ratio)
        elif height > width and height > MAX_SIDE:
            width, height = int(MAX_SIDE * ratio), MAX_SIDE
        return max(width, 1), max(height, 1)

    def _multiples(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) rounded up to multiples of a tile: the longer one first, the other one in its ratio."""
        ratio = width / height
        if width >= height:
            width = self._multiple(width)
            height = self._multiple(int(width / ratio))
        else:
            height = self._multiple(height)
            width = self._multiple(int(height * ratio))
        return width, height

    def _multiple(self, length: int) -> int:
        return math.ceil(length / self.tile_size) * self.tile_size


def _read(config: Mapping[str, Any], image_seq_len: Any, path: Path) -> ImageProcessor:
    """Check every value that the reference reads. `path`: for messages."""

    def refuse(name: str, allowed: str) -> BareloopError:
        return BareloopError(f"{path}: {name} = {quote(config.get(name))} is not implemented; only {allowed} is")

    def flag(name: str, default: bool = True) -> bool:
        value = default if config.get(name) is None else config[name]
        if not isinstance(value, bool):
            raise refuse(name, "true or false")
        return value

    def edge(name: str, default: int) -> int:
        value = default if config.get(name) is None else config[name]
        if isinstance(value, dict) and set(value) == {"longest_edge"}:
            value = value["longest_edge"]
        elif config.get(name) is not None:
            value = None
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**6:
            raise refuse(name, '{"longest_edge": pixels}')
        return value

    def numbers(name: str) -> tuple[float, ...]:
        value = 0.5 if config.get(name) is None else config[name]
        values = (value,) * 3 if isinstance(value, int | float) else tuple(value) if isinstance(value, list) else ()
        if len(values) != 3 or not all(_is_number(each) for each in values):
            raise refuse(name, "a list of three numbers")
        return tuple(map(float, values))

    kind = config.get("image_processor_type")
    if kind is not None and str(kind).removesuffix("Fast").removesuffix("Pil") not in TYPES:
        raise refuse("image_processor_type", " or ".join(TYPES))
    if not flag("do_resize"):
        raise refuse("do_resize", "true")
    resample = 1 if config.get("resample") is None else config["resample"]
    if isinstance(resample, bool) or resample not in range(6):
        raise refuse("resample", "a number of Pillow's filters, 0 to 5,")
    factor = 1 / 255 if config.get("rescale_factor") is None else config["rescale_factor"]
    if not _is_number(factor):
        raise refuse("rescale_factor", "a number")
    std = numbers("image_std")
    if 0 in std:
        raise refuse("image_std", "a list of three numbers other than 0")
    if image_seq_len is not None and (isinstance(image_seq_len, bool) or not isinstance(image_seq_len, int)):
        raise BareloopError(f"{PROCESSOR_FILE}: image_seq_len = {quote(image_seq_len)} is not a number")
    size, side = edge("size", 4 * 364), edge("max_image_size", 364)
    if side > MAX_SIDE or math.ceil((min(size, MAX_SIDE) + 1) / side) ** 2 > MAX_TILES:
        raise refuse("max_image_size", f"a tile up to {MAX_SIDE} pixels, and up to {MAX_TILES} tiles an image,")
    return ImageProcessor(
        tile_size=side,
        longest_edge=size,
        splits=flag("do_image_splitting"),
        resample=resample,
        scale=factor if flag("do_rescale") else 1.0,
        mean=numbers("image_mean") if flag("do_normalize") else None,
        std=std,
        image_seq_len=image_seq_len,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
