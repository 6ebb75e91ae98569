"""The images of prompts: ids of their own for their vectors, and the vectors, computed once.

    bytes -> SHA-256 -> ids            in the thread that encodes the prompt
    bytes -> picture -> tiles (uint8)
    tiles -> vectors                   in the step that first needs them

Each vector of an image has a token id that no token of the vocabulary has. It follows from the image's bytes, so the
same image always has the same ids, and two images never share any: everything that compares ids (the cache of
prefixes, for one) is right for images, too.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable
from collections.abc import Sequence as Seq
from functools import cached_property
from itertools import count, groupby
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.cache.state import Step, StepImages
from engine.models.vision.preprocessing import ImageProcessor
from engine.models.vision.smolvlm import TILES_TOGETHER, SmolVLM
from engine.runtime.device import upload
from engine.runtime.errors import BareloopError
from engine.runtime.pictures import picture_bytes, picture_size, read_picture
from engine.text.image_prompt import image_prompt
from engine.text.tokenizer import Tokenizer

MAX_BYTES = 256 * 2**20  # of the images that no request holds

# The id of a vector is FIRST_ID + SPAN * (128 bits of the image's SHA-256) + index.
SPAN = 2**32  # far more vectors than an image has
FIRST_ID = 2**128 * SPAN  # above every vocabulary


def is_image_id(token: int) -> bool:
    """Whether a token id stands for a vector of an image."""
    return FIRST_ID <= token < 2 * FIRST_ID


class Image:
    """One image of a library. It stays in memory as long as somebody holds it."""

    def __init__(self, tiles: NDArray[np.uint8], ids: list[int]) -> None:
        self.ids = ids  # in a prompt, with its control tokens
        self.tiles: list[NDArray[np.uint8] | Tensor] = [tile.copy() for tile in tiles]  # pixels, later vectors [P, D]

    @property
    def nbytes(self) -> int:
        return sum(tile.nbytes for tile in self.tiles)


class ImageLibrary:
    """The images that prompts of one model refer to. All methods can be called from any thread."""

    def __init__(self, model: SmolVLM, folder: Path, tokenizer: Tokenizer, max_bytes: int = MAX_BYTES) -> None:
        """`folder`: of the checkpoint, whose image processor is read with the first image.

        `max_bytes`: of the images that are kept for later prompts; the least recently used ones are dropped.
        """
        assert model.config.image_token_id is not None
        self.model = model
        self.image_token_id = model.config.image_token_id
        self.folder = folder
        self.tokenizer = tokenizer
        self.max_bytes = max_bytes
        self._known: WeakValueDictionary[int, Image] = WeakValueDictionary()  # by the first of their ids
        self._kept: OrderedDict[int, Image] = OrderedDict()  # the least recently used first
        self._lock = threading.Lock()

    @cached_property
    def processor(self) -> ImageProcessor:
        """The checkpoint's. Raises `BareloopError` if it has none, or one that does not fit the model."""
        processor, config = ImageProcessor.load(self.folder), self.model.config
        processor.check(config.vision.image_size, config.tokens_per_tile)
        return processor

    @property
    def nbytes(self) -> int:
        """Bytes of the images that are kept: pixels, and vectors in their place once they are computed."""
        with self._lock:
            return sum(image.nbytes for image in self._kept.values())

    @property
    def used_bytes(self) -> int:
        """Bytes of all images in memory: those that are kept, and those that somebody holds."""
        with self._lock:
            return sum(image.nbytes for image in [*self._known.values()])

    def encode(self, source: str | Path | bytes, scope: Hashable = None) -> list[int]:
        """Token ids of one image in a prompt: its control tokens, and ids of its own for its vectors.

        `source`: a file's name, a `data:` URL, or the bytes of a file. The same bytes have the same ids within a scope,
        whose `repr` tells it from others: how long an answer takes does not reveal what others have sent.
        Raises `BareloopError` for what is not an image.
        """
        data = picture_bytes(source)
        digest = hashlib.sha256(data).digest()
        if scope is not None:
            digest = hashlib.sha256(digest + repr(scope).encode("utf-8", "surrogatepass")).digest()
        first = FIRST_ID + SPAN * int.from_bytes(digest[:16], "big")
        with self._lock:
            image = self._known.get(first)
        if image is None:
            tiles = self.processor.split(read_picture(source, data))
            image = Image(tiles.pixels, self._ids(first, tiles.rows, tiles.columns))
        with self._lock:
            image = self._known.setdefault(first, image)  # another thread may have been first
            self._kept[first] = image
            self._kept.move_to_end(first)
        self._drop()
        return [*image.ids]

    def _ids(self, first: int, rows: int, columns: int) -> list[int]:
        ids = image_prompt(self.tokenizer, rows, columns, self.model.config.tokens_per_tile, self.image_token_id)
        places = count(first)
        return [next(places) if token == self.image_token_id else token for token in ids]

    def _drop(self) -> None:
        """Drop images until the others are within the limit. The last one stays."""
        with self._lock:
            total = sum(image.nbytes for image in self._kept.values())
            while total > self.max_bytes and len(self._kept) > 1:
                total -= self._kept.popitem(last=False)[1].nbytes

    def count(self, source: str | Path | bytes) -> int:
        """Number of tokens of an image in a prompt, from its size alone (`picture_size`)."""
        return len(self._ids(FIRST_ID, *self.processor.shape(*picture_size(source))))

    def pin(self, ids: Seq[int]) -> list[Image]:
        """The images of a prompt, but for those that were dropped. They stay as long as the caller holds this list."""
        firsts = dict.fromkeys(_split(token)[0] for token in ids if is_image_id(token))
        with self._lock:
            for first in firsts:
                if first in self._kept:
                    self._kept.move_to_end(first)
            images = [self._known.get(first) for first in firsts]
        return [image for image in images if image is not None]

    def group_starts(self, ids: Seq[int]) -> list[int]:
        """The indices in a prompt of the first vector of each group of tiles that are computed together."""
        size = TILES_TOGETHER * self.model.config.tokens_per_tile
        return [index for index, token in enumerate(ids) if is_image_id(token) and _split(token)[1] % size == 0]

    def placeholders(self, ids: Seq[int]) -> list[int]:
        """The ids with the model's `image_token_id` for each vector of an image: those of its vocabulary alone."""
        return [self.image_token_id if is_image_id(token) else token for token in ids]

    def pack(self, chunks: Seq[Seq[int]], rows: Seq[int], starts: Seq[int], device: torch.device) -> Step:
        """`Step.pack`, with the vectors of the images in the chunks, which are computed if they have not been.

        Raises `BareloopError` if an image has been dropped.
        """
        tokens = [token for chunk in chunks for token in chunk]
        places = [place for place, token in enumerate(tokens) if is_image_id(token)]
        if not places:
            return Step.pack(chunks, rows, starts, device)
        vectors = self.vectors([tokens[place] for place in places])
        images = StepImages(upload(places, torch.long, device), vectors)
        return Step.pack([self.placeholders(chunk) for chunk in chunks], rows, starts, device, images)

    def vectors(self, ids: Seq[int]) -> Tensor:
        """The vectors [M, hidden] of ids of images. Raises `BareloopError` if an image has been dropped."""
        parts: list[Tensor] = []
        for (first, tile), indices in groupby(map(self._place, ids), key=lambda place: place[:2]):
            vectors = self._tile(first, tile)
            offsets = [offset for _, _, offset in indices]
            parts.append(vectors[offsets[0] : offsets[-1] + 1] if _is_range(offsets) else vectors[offsets])
        return torch.cat(parts)

    def _place(self, token: int) -> tuple[int, int, int]:
        """First id of an image, number of the tile, index in the tile."""
        first, index = _split(token)
        return first, *divmod(index, self.model.config.tokens_per_tile)

    def _tile(self, first: int, number: int) -> Tensor:
        """The vectors [P, hidden] of one tile. Those of its group are computed with it, always in the same way."""
        image = self._known.get(first)
        if image is None or number >= len(image.tiles):
            raise BareloopError("an image of this prompt is no longer in memory; send it again")
        tile = image.tiles[number]
        if not isinstance(tile, Tensor):
            start = number // TILES_TOGETHER * TILES_TOGETHER
            group = slice(start, start + TILES_TOGETHER)
            tiles = [self.processor.normalize(each) for each in image.tiles[group] if not isinstance(each, Tensor)]
            with torch.inference_mode():
                vectors = self.model.image_vectors(torch.from_numpy(np.stack(tiles)))
            image.tiles[group] = list(vectors)  # the pixels are not needed any more
            tile = vectors[number - start]
            self._drop()
        return tile


class PromptImages:
    """The images of one prompt, for its chat template. They stay in memory as long as this is held."""

    def __init__(self, library: ImageLibrary, scope: Hashable = None) -> None:
        self.library = library
        self.scope = scope
        self.pinned: list[Image] = []

    def encode(self, source: str | Path | bytes) -> list[int]:
        """Token ids of one image in a prompt, as `ImageLibrary.encode` gives them. Raises `BareloopError`."""
        ids = self.library.encode(source, self.scope)
        self.pinned += self.library.pin(ids)
        return ids


def _split(token: int) -> tuple[int, int]:
    """The first id of an image's vectors, and the index of this one."""
    index = (token - FIRST_ID) % SPAN
    return token - index, index


def _is_range(numbers: Seq[int]) -> bool:
    return list(numbers) == list(range(numbers[0], numbers[0] + len(numbers)))
