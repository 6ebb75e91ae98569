"""All conversations: those in the terminal's store, those that are open, and the list that every tab shows."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from chat import store
from chat.conversation.events import Settings
from chat.conversation.recall import Memory
from chat.web.agent import PageAgent
from chat.web.conversation import Conversation
from chat.web.files import DELETED, Files, Row, has_text, move
from chat.web.models.interface import Models
from chat.web.streams import Event, Tab, event
from engine.runtime.errors import BareloopError, quote
from engine.serve.protocol.errors import ApiError
from engine.serve.threads import in_thread

LOG = logging.getLogger("bareloop.chat")
POLL = 2.0  # seconds between two looks at the folder while a tab is open: other programs write there, too
FORGET = 900.0  # seconds after which an idle conversation without tabs is only kept in its file
END = 2.0  # seconds that running replies have to end


class Library:
    """The conversations of one user. Methods are called in the thread of the event loop."""

    def __init__(self, models: Models, settings: Settings, autosave: bool, memory: Memory | None = None) -> None:
        """`settings`: of new conversations. Without `autosave` conversations are only kept in this process.

        `memory`: that all conversations share.
        """
        self.models, self.settings, self.autosave = models, settings, autosave
        self.memory = memory
        self.tabs: set[Tab] = set()
        self.is_closed = False
        self._open: dict[str, Conversation] = {}
        self._deleted: dict[str, Conversation] = {}  # of which the files have not all, or there are none
        self._files, self._deleted_files = Files(), Files(DELETED)
        self._list: Event | None = None
        self._changed = asyncio.Event()
        self._opening = asyncio.Lock()
        self._reading = asyncio.Lock()  # the files
        self._watcher: asyncio.Task[None] | None = None

    # The list.

    async def rows(self) -> list[Row]:
        """All conversations with messages, the newest first. Not a copy in which nothing has changed."""
        async with self._reading:
            rows = await in_thread(self._files.rows, "list")
        return _merged(rows, self._open.values())

    async def deleted(self) -> list[Row]:
        """The conversations that can be restored, the newest first."""
        async with self._reading:
            rows = await in_thread(self._deleted_files.rows, "list")
        return _merged(rows, self._deleted.values())

    async def search(self, text: str) -> list[str]:
        """The ids of the conversations of which a message or the title has this text, in any case; the newest first."""
        rows, agents = await self.rows(), [(id, conversation.agent) for id, conversation in self._open.items()]

        def read() -> set[str]:
            unsaved = ((id, store.encode(agent.conversation())) for id, agent in agents if not agent.is_saved)
            return self._files.search(text) | {id for id, saved in unsaved if has_text(json.loads(saved), text)}

        found = await in_thread(read, "search")
        return [row["id"] for row in rows if row["id"] in found]

    async def tell_list(self) -> None:
        """Tell all tabs the list, if it has changed."""
        list_now = event("conversations", conversations=await self.rows())
        if list_now != self._list:
            self._list = list_now
            for tab in self.tabs:
                tab.push(list_now)

    async def _watch(self) -> None:
        """Keep what tabs show, and what is in memory, up to date until cancelled."""
        told = ""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await self._changed.wait()
            self._changed.clear()
            try:
                if self.tabs:
                    await self.tell_list()
                for conversation in [*self._open.values()]:
                    if conversation.tabs:
                        await conversation.refresh()
                self._forget()
                told = ""
            except Exception as error:
                if (text := f"{type(error).__name__}: {error}") != told:
                    LOG.error("the list of conversations: %s", text)
                told = text

    def _forget(self) -> None:
        """Drop idle conversations that nobody looks at, and that are whole in their files."""
        for id, conversation in [*self._open.items()]:
            is_old = time.monotonic() - conversation.used > FORGET
            if is_old and conversation.is_idle and not conversation.tabs and conversation.is_in_file:
                del self._open[id]

    # Tabs.

    def enter(self, tab: Tab) -> None:
        """A tab has connected: tell it everything."""
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())
        self.tabs.add(tab)
        for conversation in self._shown(tab):
            conversation.tabs.add(tab)
        self.greet(tab)
        if self.is_closed:
            tab.close()

    def leave(self, tab: Tab) -> None:
        """A tab is gone. What runs goes on."""
        self.tabs.discard(tab)
        for conversation in self._shown(tab):
            conversation.tabs.discard(tab)

    def greet(self, tab: Tab) -> None:
        """Tell a tab everything."""
        if self._list is not None:
            tab.push(self._list)
        self._changed.set()
        for conversation in self._shown(tab):
            conversation.greet(tab)

    def _shown(self, tab: Tab) -> list[Conversation]:
        return [self._open[id] for id in dict.fromkeys(tab.conversations) if id in self._open]

    # Conversations.

    async def find(self, id: str) -> Conversation:
        """An open conversation, or that of a file, which is opened. Raises `ApiError` 404, `BareloopError`."""
        if id in self._open:
            return self._open[id]
        async with self._opening:
            if id not in self._open:
                path = await in_thread(lambda: self._files.find(id), "list")
                if path is None:
                    raise ApiError(404, f"there is no conversation {quote(id)}")
                agent = self._agent()
                await self.add(agent, await in_thread(lambda: agent.open_file(path), "open"))
            return self._open[id]

    async def create(self, model: str | None, source: str | None, changes: Mapping[str, Any]) -> Conversation:
        """A new conversation, or a copy of one, with changed settings. Its file appears with its first message.

        Raises `ApiError` or `BareloopError` for a model, a conversation or settings that do not exist.
        """
        original = None if source is None else await self.find(source)
        name = self.models.names[0] if original is None else original.agent.name
        if model is not None:
            resolved = self.models.resolve(model)
            if resolved is None:
                raise BareloopError(f"there is no model {quote(model)}; use one of: {', '.join(self.models.names)}")
            name = resolved
        settings = self.settings if original is None else original.agent.session.settings
        agent = PageAgent(self.models, name, settings, self.autosave, self.memory)
        agent.change_settings(changes)
        if original is not None:
            await original.copy_to(agent)
        return await self.add(agent)

    async def import_(self, name: str, content: Any) -> Conversation:
        """A conversation from the content of a file. Raises `BareloopError` if it is none."""
        agent, rows = self._agent(), await self.rows()

        def read() -> list[str]:
            saved = store.parse(content, name)
            warnings = agent.open(saved, Path())  # the name is the browser's, and no path here
            if agent.heading and any(row["id"] == PurePath(name).stem or row["title"] == agent.heading for row in rows):
                agent.add_to_title(" (imported)")
            agent.autosave_now()  # if that fails, the conversation says so
            return warnings

        conversation = await self.add(agent, await in_thread(read, "import"))
        self._changed.set()
        return conversation

    async def add(self, agent: PageAgent, warnings: list[str] | None = None) -> Conversation:
        """Open the conversation of an agent. `warnings`: about its file, for the user."""
        conversation = Conversation(agent.path.stem, agent, self.models, self._changed.set)
        conversation.warnings = warnings or []
        await conversation.prepare()
        self._open[conversation.id] = conversation
        return conversation

    async def delete(self, id: str) -> int:
        """Delete a conversation, so that it can be restored. Raises `ApiError`, `BareloopError`.

        -> how many of its turns the memory has forgotten: they are not restored
        """
        conversation = await self._find_or_none(id)
        path = await in_thread(lambda: self._files.find(id), "list")
        if path is None and conversation is None:
            raise ApiError(404, f"there is no conversation {quote(id)}")
        if path is not None and not self.autosave:
            raise ApiError(409, "the program runs with --no-save, so files stay as they are")
        if conversation is None:
            forgotten = await self._move_away(id)
        else:
            conversation.is_leaving = True
            try:
                await conversation.end()
                is_whole = conversation.is_in_file
                forgotten = await self._move_away(id)  # the end may have saved it
            finally:
                conversation.is_leaving = False
            self._open.pop(id, None)
            if not is_whole:
                self._deleted[id] = conversation
            conversation.audience.tell(replace(event("deleted", id), is_lasting=True))
            conversation.tabs.clear()
        self._changed.set()
        return forgotten

    async def _move_away(self, id: str) -> int:
        """Move the file of a conversation, if there is one, to those that were deleted. -> turns that are forgotten"""

        def work() -> int:
            forgotten = 0 if self.memory is None else self.memory.forget_conversation(id)  # first, as it may fail
            if (path := self._files.find(id)) is not None:
                move(path, self._deleted_files.folder / path.name)
            return forgotten

        return await in_thread(work, "delete")

    async def restore(self, id: str) -> None:
        """Take a deletion back. Raises `ApiError` 404 for a conversation that was not deleted."""
        path = await in_thread(lambda: self._deleted_files.find(id), "list")
        if id in self._open or (path is None and id not in self._deleted):
            raise ApiError(404, f"there is no deleted conversation {quote(id)}")
        if path is not None:
            await in_thread(lambda: move(path, self._files.folder / path.name), "restore")
        if id in self._deleted:
            self._open[id] = self._deleted.pop(id)
        self._changed.set()
        if tabs := [tab for tab in self.tabs if id in tab.conversations]:
            conversation = await self.find(id)
            await conversation.show()
            for tab in tabs:
                conversation.tabs.add(tab)
                conversation.greet(tab)

    def release(self, model: str) -> None:
        """Let go of a model that is about to be unloaded."""
        for conversation in (*self._open.values(), *self._deleted.values()):
            if conversation.agent.name == model:
                conversation.release()

    async def close(self) -> None:
        """End and save all replies, then all streams."""
        self.is_closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(END):
                await asyncio.gather(*(conversation.end() for conversation in self._open.values()))
                await in_thread(self._save_rest, "save")
        for tab in self.tabs:
            tab.close()
        if self._watcher is not None:
            self._watcher.cancel()

    def _save_rest(self) -> None:
        """Try once more to save what could not be saved. In a thread."""
        for conversation in [*self._open.values()]:
            if conversation.agent.problem and (problem := conversation.agent.autosave_now()) is not None:
                LOG.error("conversation %s: %s", conversation.id, problem.text)

    def _agent(self) -> PageAgent:
        return PageAgent(self.models, self.models.names[0], self.settings, self.autosave, self.memory)

    async def _find_or_none(self, id: str) -> Conversation | None:
        """As `find`; None if there is no such conversation, or its file is damaged."""
        try:
            return await self.find(id)
        except (ApiError, BareloopError):
            return None


def _merged(files: list[Row], conversations: Iterable[Conversation]) -> list[Row]:
    """Rows of files, and of conversations in memory, the newest first."""
    rows = {row["id"]: row for row in files}
    for conversation in conversations:
        agent, id, is_running = conversation.agent, conversation.id, conversation.run is not None
        turns = len(agent.session.turns)
        if id in rows or (turns and not agent.is_new_copy):
            row: Row = {"id": id, "updated": conversation.updated.isoformat(timespec="seconds")} | rows.get(id, {})
            if id not in rows or is_running or not agent.is_saved:
                row |= {"title": agent.heading, "turns": turns}
            rows[id] = row | {"running": is_running}
    return sorted(rows.values(), key=lambda row: (row["updated"], row["id"]), reverse=True)
