"""The agent: an open conversation that understands lines, messages and /commands alike.

    agent = Agent(LocalModel.load, "demo", Settings())
    for event in agent.handle("Hi!"):
        ...

The terminal, the pipe and the tests all drive this.
"""

from __future__ import annotations

from collections.abc import Callable

from chat.commands import execute, is_command
from chat.events import ChatEvents, Notice, Reply, Settings
from chat.models.interface import ChatModel
from chat.workspace import Workspace


class Agent(Workspace):
    """A workspace that handles lines, and saves the conversation after each."""

    def __init__(
        self, load_model: Callable[[str], ChatModel], name: str, settings: Settings, autosave: bool = True
    ) -> None:
        super().__init__(load_model, name, settings, autosave)
        self._pending: Notice | None = None  # a failed autosave, reported before the next line

    def handle(self, line: str) -> ChatEvents:
        """Handle a message or a command. Raises `BareloopError`, and `EOFError` if the user leaves."""
        if self._pending is not None:
            yield self._pending
        events = execute(self, line.strip()) if is_command(line.strip()) else self.session.send(line)
        saved = False
        try:
            for event in events:
                if isinstance(event, Reply):
                    warning, saved = self.autosave_now(), True
                    yield event
                    if warning:
                        yield warning
                else:
                    yield event
        finally:
            events.close()  # an abandoned reply keeps its text
            self._pending = None if saved else self.autosave_now()
