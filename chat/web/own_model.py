"""The model of one conversation: it is there while somebody needs it, or it is loaded anyway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chat.images import count_images
from chat.web.agent import PageAgent
from chat.web.models.interface import Models, Progress
from engine.runtime.errors import UsageError
from engine.serve.threads import in_thread


class OwnModel:
    """Gives an agent its model. Methods are called in the thread of the event loop, by whoever has the session."""

    def __init__(self, agent: PageAgent, models: Models) -> None:
        self.agent, self.models = agent, models

    @asynccontextmanager
    async def use(self, progress: Progress) -> AsyncIterator[None]:
        """Have the model, loaded, in the agent. `progress` is called while it is loaded."""
        async with self.models.use(self.agent.name, progress) as make:
            if not self.agent.has_model:
                self.agent.attach(await in_thread(lambda: make(self.agent.session.now), "model"))
            yield

    async def change(self, name: str, progress: Progress) -> int:
        """Go on with another model. -> its window in tokens

        Until it is loaded, there is none. If that fails or is cancelled, the agent has the name that it had before.
        """
        before = self.agent.name
        self.agent.detach()
        self.agent.name = name
        try:
            async with self.use(progress):
                return await in_thread(self._window, "model")
        except BaseException:
            self.agent.detach()
            self.agent.name = before
            raise

    def _window(self) -> int:
        """The window of a model that is new in the session, which counts the memories in its prompt. In a thread.

        Raises `UsageError` if the conversation has images, and the model takes none.
        """
        session = self.agent.session
        if not session.model.takes_images and any(map(count_images, session.turns)):
            raise UsageError(
                f"this conversation has images, and {self.agent.name} takes none: begin a new conversation for it"
            )
        session.recount_memories()
        return session.budget.window
