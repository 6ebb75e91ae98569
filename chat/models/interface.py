"""What a session needs of a model, wherever it runs. No torch.

count(messages) -> tokens        # whether a prompt fits
generate(messages, …) -> Generation -> events with text, …
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from chat.context import Message, SystemRole
from engine.runtime.errors import BareloopError


class PromptTooLongError(BareloopError):
    """A server refuses a prompt because of its length. The model has learned from it: the same prompt now counts as too
    long, so that `fit` drops more."""


@dataclass(frozen=True)
class Origin:
    """What wrote a conversation, as far as it is known; noted in its file."""

    fingerprint: str = ""  # of the model's weights
    template: str = ""  # SHA-256 of the chat template
    url: str = ""  # of the server


@dataclass(frozen=True, slots=True)
class TokenProbability:
    """A token, its log-probability (None: unknown), and the most likely tokens with theirs, best first."""

    text: str  # of the token itself, also of a control token; U+FFFD for a part of a character
    logprob: float | None
    alternatives: Sequence[tuple[str, float]] = ()
    piece: str = ""  # what it added to the text: nothing if it is a control token, or a part of a character
    seconds: float = 0.0  # since the token before; of a reply's first token, since the message was sent
    id: int | None = None


class ReplyEvent(Protocol):
    """A new part of a reply. The last event has a finish reason."""

    @property
    def text(self) -> str: ...

    @property
    def token_id(self) -> int | None:
        """The token that the event stands for; None if the server does not give ids."""

    @property
    def finish_reason(self) -> str | None: ...


class Generation(Protocol):
    """A reply that is being generated. Iterating waits for its events. The counts are final after the last one."""

    @property
    def in_reasoning(self) -> bool:
        """Whether the prompt ends with the opening tag of a reasoning."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def completion_tokens(self) -> int: ...

    @property
    def cached_tokens(self) -> int:
        """Of the prompt, not computed again."""

    def __iter__(self) -> Iterator[ReplyEvent]: ...

    def cancel(self) -> None:
        """Stop, from any thread: iterating ends. It may have ended already."""


class Drafts(Protocol):
    """How often drafted tokens were right. Its text is the line of /stats."""

    @property
    def share_right(self) -> float: ...


class ChatModel(Protocol):
    """A model for one conversation."""

    @property
    def description(self) -> str:
        """Where it runs, for /stats."""

    @property
    def others(self) -> str:
        """What /model takes, for its error message."""

    @property
    def max_length(self) -> int:
        """Size of the model's window in tokens."""

    @property
    def limit(self) -> int:
        """Length in tokens of the longest prompt with its reply that is possible now."""

    @property
    def defaults(self) -> Mapping[str, Any] | None:
        """Sampling parameters where the user sets none; None if only the server knows them."""

    @property
    def system_role(self) -> SystemRole:
        """Where the chat template takes a system message."""

    @property
    def takes_images(self) -> bool:
        """Whether messages may have images, as far as it is known before one is sent."""

    @property
    def counts_exactly(self) -> bool:
        """Whether `count` is exact, or an estimate."""

    @property
    def drafts(self) -> Drafts | None:
        """None without speculative decoding."""

    @property
    def peak_memory(self) -> int:
        """Bytes; 0 if unknown."""

    def at(self, now: datetime) -> ChatModel:
        """The same model for a conversation that began at this time, which its template may print."""

    def origin(self) -> Origin:
        """What the conversation's file says about the model."""

    def warnings(self, window: int | None) -> list[str]:
        """What a user should know before the first message. `window`: what the user has set."""

    def count(self, messages: Sequence[Message]) -> int:
        """Number of tokens of these messages in the model's template. Raises `TemplateError` if it rejects them."""

    def generate(self, messages: Sequence[Message], sampling: Mapping[str, Any], continues: bool) -> Generation:
        """Begin a reply, or continue it if the last message is its beginning. Does not wait for a server.

        `sampling`: fields of `SamplingParams` that the user has set, and `max_new_tokens`.
        The first event, in its place, may raise `PromptTooLongError`.
        """

    def tokens(self, messages: Sequence[Message]) -> list[tuple[int, str]]:
        """Ids and texts of the tokens of a prompt. Raises `BareloopError` if the server does not tell them."""

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The text of a prompt, with control tokens. Raises as `tokens`."""

    def probabilities(self, events: Sequence[ReplyEvent]) -> list[TokenProbability]:
        """The tokens of these events; without probabilities if none were recorded."""

    @property
    def can_score(self) -> bool:
        """Whether `score` works."""

    def score(self, messages: Sequence[Message]) -> list[TokenProbability]:
        """The tokens of a prompt with their probabilities; the first has none.

        Raises `BareloopError` if the server does not tell them.
        """

    def token_bytes(self, context: int) -> int:
        """Bytes that are read from memory to decode a token after `context` others; 0 if unknown."""

    def bandwidth(self) -> float:
        """Bytes per second that can be read from memory: the most that was measured so far; 0.0 if unknown."""

    def ends(self, text: str) -> bool:
        """Whether a token of this text ends a reply."""

    def is_control(self, text: str) -> bool:
        """Whether a token of this text is a control token, which cannot be a part of a message."""
