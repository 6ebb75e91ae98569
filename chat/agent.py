"""The agent: an open conversation that understands lines, messages and /commands alike.

    agent = Agent(LocalModel.load, "demo", Settings())
    for event in agent.handle("Hi!"):
        ...

The terminal, the pipe, the page and the tests all drive this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from chat.commands import execute, is_command
from chat.conversation.events import ChatEvents, Notice, Piece, Reply, Settings
from chat.conversation.recall import Memory
from chat.images import ImagePart, content_of, images_of
from chat.models.interface import ChatModel
from chat.workspace import Workspace
from engine.runtime.errors import UsageError
from engine.text.surrogates import SURROGATE

SAVE_INTERVAL = 5.0  # seconds between two saves of a reply that is being generated: the most that a kill loses
SAVE_FACTOR = 50  # the interval is at least this many times as long as a save takes, so that streaming stays fast


class Agent(Workspace):
    """A workspace that handles lines, and saves the conversation before a reply, during a long one, and after each."""

    def __init__(
        self,
        load_model: Callable[[str], ChatModel],
        name: str,
        settings: Settings,
        autosave: bool = True,
        memory: Memory | None = None,
    ) -> None:
        super().__init__(load_model, name, settings, autosave, memory)
        self._pending: Notice | None = None  # a failed autosave, reported before the next line
        self._moved: Notice | None = None  # another program has taken the file while the line was handled
        self._next_save = 0.0  # by the clock of `time.monotonic`

    def handle(self, line: str, images: Sequence[ImagePart] = ()) -> ChatEvents:
        """Handle a message or a command. Raises `BareloopError`, and `EOFError` if the user leaves.

        `images` of the message come after those that were attached. Attached ones stay until a message with them has
        got a reply.
        """
        if SURROGATE.search(line):
            raise UsageError("the line has half of a UTF-16 pair, which is no text; type it again")
        if self._pending is not None:
            yield self._pending
        self._moved, self.session.on_message = None, self._save_part
        is_message = not is_command(line.strip())
        if images and not is_message:
            raise UsageError("images go with a message, not with a command")
        images = [*self.images, *images] if is_message else []
        if images:  # saved at once, as decoding and counting them takes a while
            self.session.unanswered = content_of(line, images)
            self._save_part()
        events = self.session.send(line, images) if is_message else execute(self, line.strip())
        saved = False
        try:
            for event in events:
                if isinstance(event, Piece) and time.monotonic() >= self._next_save:
                    self._save_part()
                if isinstance(event, Reply):
                    warning, saved = self.autosave_now() or self._moved, True
                    yield event
                    if warning:
                        yield warning
                else:
                    yield event
        finally:
            events.close()  # an abandoned reply keeps its text
            self.images = [image for image in self.images if not self._was_sent(image)]
            self._pending = None if saved else self.autosave_now() or self._moved

    def _was_sent(self, image: ImagePart) -> bool:
        """Whether the last message has this very image."""
        turns = self.session.turns
        return any(other is image for turn in turns[-1:] for other in images_of(turn[0]["content"]))

    def _save_part(self) -> None:
        """Save what there is of a turn. If that fails, the next attempt may not, and the last one is reported."""
        begun = time.monotonic()
        warning = self.autosave_now()
        if not self._has_failed:
            self._moved = warning or self._moved
        ended = time.monotonic()
        self._next_save = ended + max(SAVE_INTERVAL, SAVE_FACTOR * (ended - begun))
