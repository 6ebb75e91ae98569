"""What a conversation yields while it runs (notices, pieces of text, replies), its settings and counters. No torch."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from chat.context import STRATEGIES
from engine.cli.progress import tokens_per_second
from engine.runtime.errors import UsageError, quote

if TYPE_CHECKING:
    from chat.models.interface import TokenProbability


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

    kind: str  # info, warning, error, dropped, summary, recalled, reasoning, loop, stopped, greeting
    text: str


@dataclass(frozen=True)
class Piece:
    """The next piece of a reply: of its text, of its reasoning, or only tokens that add to neither."""

    text: str
    reasoning: str = ""
    tokens: Sequence[TokenProbability] = ()  # since the last piece


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
    tokens: Sequence[TokenProbability] = ()  # of the whole text, as far as they are known
    memories: Sequence[int] = ()  # numbers of the pieces of memory in its prompt

    @property
    def tokens_per_second(self) -> float:
        """Decoding rate, without the time to the first token."""
        return tokens_per_second(self.completion_tokens, self.seconds)

    def without_tokens(self) -> Reply:
        """The same, to be kept: a token has some hundred bytes."""
        return replace(self, tokens=())


@dataclass
class Statistics:
    """Counters for /stats."""

    replies: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    last: Reply | None = None  # without its tokens
    evictions: int = 0
    dropped_turns: int = 0
    dropped_tokens: int = 0
    dropped_images: int = 0
    summaries: int = 0
    summary_read: int = 0  # prompt tokens computed for summary requests

    def add(self, reply: Reply) -> None:
        """Count a reply."""
        self.replies += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        self.cached_tokens += reply.cached_tokens
        self.last = reply.without_tokens()


ChatEvents = Generator[Notice | Piece | Reply, None, None]  # the response to a message or a command
