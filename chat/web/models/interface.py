"""The models that a page offers, wherever they run: the interface, and what stands in for one that is not loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn, Protocol

from chat.context import Message, SystemRole
from chat.models.interface import ChatModel, Generation, Origin, ReplyEvent, TokenProbability
from engine.runtime.errors import BareloopError

MakeModel = Callable[[datetime], ChatModel]  # from the time at which a conversation began; takes a while
Progress = Callable[[float, int, bool], None]  # seconds so far, bytes of the weights (0: unknown), whether that was all


@dataclass(frozen=True)
class Machine:
    """Where a model is computed, for the costs of a token. Empty and 0: unknown."""

    device: str = ""
    dtype: str = ""
    weights_bytes: int = 0


class Models(Protocol):
    """All models of a page by their names. Methods are called in the thread of the event loop."""

    @property
    def names(self) -> list[str]:
        """Those that can be chosen; the first is the default."""

    def about(self, name: str) -> str:
        """A few words about a model, as far as they are known."""

    def resolve(self, name: str) -> str | None:
        """The name of a model by which a file or a user calls it; None if it is not offered."""

    def is_wanted(self, name: str) -> bool:
        """Whether a model is loaded or being loaded, so that using it costs nothing."""

    def use(self, name: str, progress: Progress) -> AbstractAsyncContextManager[MakeModel]:
        """Use a model, which is loaded first if need be, and kept meanwhile. Raises `ApiError` or `BareloopError`."""

    def machine(self, model: ChatModel) -> Machine:
        """Where a model that is in use is computed."""


class Absent:
    """Stands in for a model that is not loaded: a conversation can be shown and stored, and nothing computed."""

    description = "not loaded"
    others = "the name of a model"
    max_length = limit = 2**31
    defaults: Mapping[str, Any] | None = None
    system_role: SystemRole = "first"
    counts_exactly = False
    drafts = None
    peak_memory = 0
    can_score = False
    takes_images = True  # it is not known

    def __init__(self, origin: Origin | None = None) -> None:
        """`origin`: of the model that wrote the conversation."""
        self._origin = origin or Origin()

    def at(self, now: datetime) -> Absent:  # noqa: ARG002
        return self

    def origin(self) -> Origin:
        return self._origin

    def warnings(self, window: int | None) -> list[str]:  # noqa: ARG002
        return []

    def count(self, messages: Sequence[Message]) -> int:  # noqa: ARG002
        return 0

    def generate(self, messages: Sequence[Message], sampling: Mapping[str, Any], continues: bool) -> Generation:  # noqa: ARG002
        _refuse()

    def tokens(self, messages: Sequence[Message]) -> list[tuple[int, str]]:  # noqa: ARG002
        _refuse()

    def prompt_text(self, messages: Sequence[Message]) -> str:  # noqa: ARG002
        _refuse()

    def probabilities(self, events: Sequence[ReplyEvent]) -> list[TokenProbability]:  # noqa: ARG002
        return []

    def score(self, messages: Sequence[Message]) -> list[TokenProbability]:  # noqa: ARG002
        _refuse()

    def token_bytes(self, context: int) -> int:  # noqa: ARG002
        return 0

    def bandwidth(self) -> float:
        return 0.0

    def ends(self, text: str) -> bool:  # noqa: ARG002
        return False

    def is_control(self, text: str) -> bool:  # noqa: ARG002
        return False


def _refuse() -> NoReturn:
    raise BareloopError("the model is not loaded; send the message again")
