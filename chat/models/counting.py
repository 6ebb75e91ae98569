"""Count the tokens of a prompt for a server, as exactly as it allows.

1. /tokenize with messages (ours, vLLM's): exact, one request per prompt;
2. /tokenize with text (llama.cpp's): one request per message, and some tokens for what the template adds;
3. an estimate from characters.

Replies report the tokens of their prompts, which corrects the estimates after them.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from chat.context import Message, rejects_system_role
from engine.remote.errors import RemoteError
from engine.runtime.errors import TemplateError

if TYPE_CHECKING:
    from engine.remote.client import RemoteModel

PER_MESSAGE = 8  # tokens that a template adds to a message, at most, in common templates
KEPT = 256  # prompts whose counts are kept
# Four letters of the Latin alphabet are a token, and so is every other character: at least as many as most tokenizers
# make of text, code or digits.
ESTIMATED_TOKEN = re.compile(r"[A-Za-z]{1,4}|\n+|[^A-Za-z\s]")


class TokenCounter:
    """Counts of a server's model. A count is kept, so that a long conversation is not counted again and again."""

    def __init__(self, client: RemoteModel) -> None:
        self.client = client
        self._counts: dict[tuple[tuple[str, str], ...], int] = {}
        self._ratios: deque[float] = deque(maxlen=4)  # of reported tokens to counted ones, the last prompts'
        self._count_text = lru_cache(4096)(self._tokenize_text)

    @cached_property
    def takes_messages(self) -> bool:
        """Whether /tokenize takes messages."""
        return self._ask([{"role": "user", "content": "."}]) is not None

    @cached_property
    def takes_text(self) -> bool:
        """Whether /tokenize takes text."""
        return self.client.tokenize(".", False) is not None

    @cached_property
    def rejects_system_role(self) -> bool:
        """Whether the model's template rejects a system message, as far as the server tells."""
        return self.takes_messages and rejects_system_role(self.count)

    @property
    def is_exact(self) -> bool:
        return self.takes_messages and self._scale == 1.0

    def count(self, messages: Sequence[Message]) -> int:
        """Number of tokens of these messages in the model's template. Raises `TemplateError` if it rejects them."""
        key = _key(messages)
        if key not in self._counts:
            self._keep(key, self._raw_count(messages))
        return round(self._counts[key] * self._scale)

    def learn(self, messages: Sequence[Message], tokens: int) -> None:
        """Correct later counts: the server has counted these messages itself."""
        self._ratios.append(tokens / max(self._raw_count(messages), 1))

    def ids(self, messages: Sequence[Message], *, pieces: bool = False) -> list[Any] | None:
        """Token ids of these messages, or {"id", "piece"} with some servers; None if the server does not tell them."""
        answer = self._ask(messages, with_pieces=True) if pieces else self._ask(messages)
        return None if answer is None else answer["tokens"]

    @property
    def _scale(self) -> float:
        """What counts are multiplied by. An exact count is never reduced, an estimate by no more than three quarters."""
        return max(1.0 if self.takes_messages else 0.25, *self._ratios) if self._ratios else 1.0

    def _raw_count(self, messages: Sequence[Message]) -> int:
        """Number of tokens without corrections."""
        key = _key(messages)
        if key in self._counts:
            return self._counts[key]
        if self.takes_messages:
            try:
                answer = self._ask(messages)
            except RemoteError as error:
                if error.status == 400:
                    raise TemplateError(str(error)) from None
                raise
            return answer["count"] if answer else self._estimate(messages)
        return self._estimate(messages)

    def _estimate(self, messages: Sequence[Message]) -> int:
        return sum(self._count_text(message["content"]) + PER_MESSAGE for message in messages)

    def _tokenize_text(self, text: str) -> int:
        tokens = self.client.tokenize(text, False) if self.takes_text else None
        return len(ESTIMATED_TOKEN.findall(text)) if tokens is None else len(tokens)

    def _ask(self, messages: Sequence[Message], **options: Any) -> dict[str, Any] | None:
        """The answer of /tokenize to messages; None if it does not take them."""
        return self.client.tokenize_messages(messages, **options)

    def _keep(self, key: tuple[tuple[str, str], ...], tokens: int) -> None:
        self._counts[key] = tokens
        if len(self._counts) > KEPT:
            del self._counts[next(iter(self._counts))]


def _key(messages: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in messages)
