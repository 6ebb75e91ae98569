"""What a conversation yields while it runs (notices, pieces of text, whole replies), and its settings. No torch."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chat.context import STRATEGIES
from engine.cli.progress import tokens_per_second
from engine.runtime.errors import UsageError, quote

if TYPE_CHECKING:
    from chat.models.interface import ReplyEvent


@dataclass(frozen=True)
class Settings:
    """What a user may change during a conversation."""

    system: str = ""
    strategy: str = "sliding"
    history: bool = True
    window: int | None = None  # tokens; None: the model's
    reserve: int | None = None  # tokens kept free for the reply; None: its length, at most a quarter of the window
    sampling: dict[str, Any] = field(default_factory=dict)  # fields of SamplingParams; override the model's defaults

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise UsageError(f"unknown strategy {quote(self.strategy)}; use one of: {', '.join(STRATEGIES)}")


@dataclass(frozen=True)
class Notice:
    """Something the user should know: what was dropped or summarised, or what went wrong."""

    kind: str  # info, warning, error, dropped, summary, reasoning, loop, stopped, greeting
    text: str


@dataclass(frozen=True)
class Piece:
    """The next piece of the reply's text."""

    text: str


@dataclass(frozen=True)
class Reply:
    """A whole reply. `finish_reason` is stop, length, loop (it repeated itself) or cancelled."""

    turn: int
    text: str
    reasoning: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    window: int
    ttft: float  # seconds from the message to the first token
    seconds: float  # from the first token to the last
    events: Sequence[ReplyEvent] = ()

    @property
    def tokens_per_second(self) -> float:
        """Decoding rate, without the time to the first token."""
        return tokens_per_second(self.completion_tokens, self.seconds)


ChatEvents = Generator[Notice | Piece | Reply, None, None]  # the response to a message or a command
