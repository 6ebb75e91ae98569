"""The models of another server, behind the same page. Loads without torch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from chat.models.interface import ChatModel
from chat.models.remote import Server
from chat.web.models.interface import Machine, MakeModel, Progress
from engine.serve.threads import at_work, in_thread


class RemoteModels:
    """Models of a server; nothing is loaded here."""

    def __init__(self, server: Server, names: list[str]) -> None:
        self.server, self.names = server, names
        self._loaded: dict[str, ChatModel] = {}

    def about(self, name: str) -> str:  # noqa: ARG002
        return ""

    def resolve(self, name: str) -> str | None:
        return name if name in self.names else None

    def is_wanted(self, name: str) -> bool:  # noqa: ARG002
        return True

    @asynccontextmanager
    async def use(self, name: str, progress: Progress) -> AsyncIterator[MakeModel]:  # noqa: ARG002
        if name not in self._loaded:
            self._loaded[name] = await in_thread(lambda: self.server.load(name), "server")
        model = self._loaded[name]
        yield model.at

    def machine(self, model: ChatModel) -> Machine:  # noqa: ARG002
        return Machine()


class NoEngines:
    """The `ProcessEngines` of a process that loads no models."""

    on_death: Callable[[Any], None] = lambda *_: None

    def __init__(self, names: list[str]) -> None:
        self.names = names

    async def preload(self) -> None:
        """Nothing is to be loaded."""

    def problem(self) -> None:
        """There is none."""

    def close(self) -> bool:
        """-> False if a thread is still at work"""
        return not at_work()
