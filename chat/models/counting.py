"""Count the tokens of a prompt for a server, as exactly as it allows.

1. /tokenize with messages (ours, vLLM's): exact, one request per prompt;
2. /tokenize with text (llama.cpp's): one request per message, and some tokens for what the template adds;
3. an estimate from characters.

An image is counted once, by itself: with /tokenize, if that takes images and counts their tokens, or by an estimate.
Replies report the tokens of their prompts, which corrects the estimates after them.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from chat.context import Message
from chat.images import images_of, text_of
from engine.remote.errors import RemoteError
from engine.runtime.errors import TemplateError

if TYPE_CHECKING:
    from engine.remote.client import RemoteModel

T = TypeVar("T")

PER_MESSAGE = 8  # tokens that a template adds to a message, at most, in common templates
KEPT_PROMPTS, KEPT_TEXTS = 256, 4096  # counts
KEPT_IMAGES = 16  # counts
ESTIMATED_IMAGE = 1200  # tokens: SmolVLM's have up to 1,127, OpenAI's 1,105, those of others depend on the size
LEAST_IMAGE = 32  # tokens; where /tokenize counts fewer, it has counted a placeholder
IMAGE_MARGIN = 2  # tokens: the text after an image may be split in another way
LEAST_SCALE = 0.5  # of an estimate: some servers report only the tokens that were not cached
# Four letters of the Latin alphabet are a token, and so is every other character: at least as many as most tokenizers
# make of text, code or digits.
ESTIMATED_TOKEN = re.compile(r"[A-Za-z]{1,4}|\n+|[^A-Za-z\s]")


class TokenCounter:
    """Counts for a server's model. They are kept, so that a long conversation is not counted again and again."""

    def __init__(self, client: RemoteModel) -> None:
        self.client = client
        self._ratios: deque[float] = deque(maxlen=4)  # of reported tokens to counted ones, of the last prompts
        self._image_tokens: deque[float] = deque(maxlen=4)  # of estimated images, as the last prompts had them
        self._has_estimated_images = False
        self._measured_image = lru_cache(KEPT_IMAGES)(self._measure_image)
        self._count_prompt = lru_cache(KEPT_PROMPTS)(self._ask_for_prompt)
        self._count_text = lru_cache(KEPT_TEXTS)(self._ask_for_text)

    @cached_property
    def _first_answer(self) -> dict[str, Any] | None:
        """What /tokenize answers to a message; None if it does not take messages, or fails."""
        return _if_answered(lambda: self.client.tokenize_messages([{"role": "user", "content": "."}]))

    @property
    def takes_messages(self) -> bool:
        """Whether /tokenize takes messages."""
        return self._first_answer is not None

    @property
    def window(self) -> int | None:
        """The model's window in tokens, if /tokenize tells it."""
        length = (self._first_answer or {}).get("max_model_len")
        return length if type(length) is int and length > 0 else None

    @cached_property
    def takes_text(self) -> bool:
        """Whether /tokenize takes text."""
        return _if_answered(lambda: self.client.tokenize(".", False)) is not None

    @property
    def is_exact(self) -> bool:
        return self.takes_messages and self._scale == 1.0 and not self._has_estimated_images

    def count(self, messages: Sequence[Message]) -> int:
        """Number of tokens of these messages in the model's template. Raises `TemplateError` if it rejects them."""
        measured, estimated = self._count_images(messages)
        self._has_estimated_images |= estimated > 0
        text = math.ceil((self._count_text_of(messages) + measured) * self._scale)
        return text + math.ceil(estimated * max(self._image_tokens, default=ESTIMATED_IMAGE))

    def learn(self, messages: Sequence[Message], tokens: int) -> None:
        """Correct later counts: the server has counted these messages itself."""
        text, (measured, estimated) = self._count_text_of(messages), self._count_images(messages)
        if estimated:
            each = (tokens - (text + measured) * self._scale) / estimated
            self._image_tokens.append(max(each, LEAST_SCALE * ESTIMATED_IMAGE))
        else:
            self._ratios.append(tokens / max(text + measured, 1))

    @property
    def _scale(self) -> float:
        """Factor of the counts: the largest of the last ones, as too small a count costs more than too large a one."""
        least = 1.0 if self.takes_messages else LEAST_SCALE
        return max(least, *self._ratios) if self._ratios else 1.0

    def _count_images(self, messages: Sequence[Message]) -> tuple[int, int]:
        """Tokens of the images that the server counts, and the number of the others."""
        images = [image["image"] for message in messages for image in images_of(message["content"])]
        counts = [self._measured_image(image) for image in images]
        return sum(count for count in counts if count), counts.count(None)

    def _measure_image(self, image: str) -> int | None:
        """Tokens of an image, a data: URL, by the server; None if it does not count them."""
        if not self.takes_messages:
            return None
        text = {"type": "text", "text": "."}
        content = [{"type": "image_url", "image_url": {"url": image}}, text]
        answer = _if_answered(lambda: self.client.tokenize_messages([{"role": "user", "content": content}]))
        tokens = 0 if answer is None else int(answer["count"]) - self._count_prompt((("user", "."),))
        return None if tokens < LEAST_IMAGE else tokens + IMAGE_MARGIN

    def _count_text_of(self, messages: Sequence[Message]) -> int:
        """Number of tokens without those of images, not corrected."""
        pairs = tuple((message["role"], text_of(message["content"])) for message in messages)
        if self.takes_messages:
            return self._count_prompt(pairs)
        return sum(self._count_text(text) + PER_MESSAGE for _, text in pairs)

    def _ask_for_prompt(self, pairs: tuple[tuple[str, str], ...]) -> int:
        try:
            answer = self.client.tokenize_messages([{"role": role, "content": text} for role, text in pairs])
        except RemoteError as error:
            if error.status == 400:
                raise TemplateError(str(error)) from None
            raise
        if answer is None:
            raise RemoteError(f"{self.client.url} no longer tokenizes messages; start again")
        return int(answer["count"])

    def _ask_for_text(self, text: str) -> int:
        tokens = self.client.tokenize(text, False) if self.takes_text else None
        return len(ESTIMATED_TOKEN.findall(text)) if tokens is None else len(tokens)


def _if_answered(ask: Callable[[], T]) -> T | None:
    """The server's answer; None if that is a refusal. Raises `RemoteError` only if the server cannot be reached."""
    try:
        return ask()
    except RemoteError as error:
        if error.status is None:
            raise
        return None
