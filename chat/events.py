"""What a conversation yields as it goes on: notices, pieces of text, whole replies. And its settings."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chat.context import STRATEGIES
from engine.cli.progress import tokens_per_second
from engine.runtime.errors import UsageError

if TYPE_CHECKING:
    from engine.decoding.loop import Event


@dataclass(frozen=True)
class Settings:
    """What a user may change in mid-conversation."""

    system: str = ""
    strategy: str = "sliding"
    history: bool = True
    window: int | None = None  # tokens; None: the model's
    reserve: int | None = None  # tokens; None: the reply's, at most a quarter of the window
    sampling: dict[str, Any] = field(default_factory=dict)  # fields of SamplingParams over the model's own defaults

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise UsageError(f"no strategy {self.strategy!r}; there are: {', '.join(STRATEGIES)}")


@dataclass(frozen=True)
class Notice:
    """Something that the user should know: what was dropped, summarised, or went wrong."""

    kind: str  # info, warning, error, dropped, summary, reasoning, loop, stopped, greeting
    text: str


@dataclass(frozen=True)
class Piece:
    """The next piece of the reply's text."""

    text: str


@dataclass(frozen=True)
class Reply:
    """A whole reply. `finish_reason`: stop, length, loop, or cancelled."""

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
    events: Sequence[Event] = ()

    @property
    def tokens_per_second(self) -> float:
        return tokens_per_second(self.completion_tokens, self.seconds)


Answer = Generator[Notice | Piece | Reply, None, None]  # what a message or a command comes to
