"""One user's open conversation: the session, the model it talks to, and the file it is saved in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from chat import store
from chat.events import Notice, Settings
from chat.models.interface import ChatModel
from chat.session import Session
from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import local_path


class Workspace:
    """A conversation with its file, saved after every turn. `load_model` maps a name to a loaded model."""

    def __init__(
        self, load_model: Callable[[str], ChatModel], name: str, settings: Settings, autosave: bool = True
    ) -> None:
        self.load_model = load_model
        self.name = name
        self.autosave = autosave
        self.stream = True
        self.draft = ""  # a message without a reply, offered to be sent again
        self.session = Session(load_model(name), settings)
        self._set_path(self._new_path())

    def begin(self) -> None:
        """Start a new conversation, in a file of its own."""
        self.autosave_now()
        self.session.clear()
        self._set_path(self._new_path())

    def conversation(self) -> store.Conversation:
        """The content of the conversation's file."""
        session, origin = self.session, self.session.model.origin()
        return store.Conversation(
            turns=session.turns,
            settings=session.settings,
            start=session.start,
            summary=session.summary,
            model=self.name,
            fingerprint=origin.fingerprint,
            template=origin.template,
            date=session.now.isoformat(),
            url=origin.url,
        )

    def save(self, name: str = "") -> Path:
        """Write the conversation to the named file, or to its own. Refuse to overwrite a file of another kind."""
        if not name:
            if self._changed_by_others():
                self._set_path(self._new_path(datetime.now()))
            store.save(self.conversation(), self.path)
            self._saved_at = _modified(self.path)
            return self.path
        path = local_path(name)
        if path.is_file():
            try:
                store.load(path)
            except BareloopError:
                raise UsageError(f"{path} exists and is not a conversation; name another file") from None
        store.save(self.conversation(), path)
        return path

    def load(self, path: Path) -> Iterator[Notice]:
        """Continue a saved conversation; the current one stays in its own file. Raises if the file cannot be read."""
        saved = store.load(path)
        settings = saved.settings
        if not saved.model:  # a plain list of messages: keep the current settings
            current = self.session.settings
            settings = replace(current, system=saved.settings.system or current.system)
        turns, unanswered = saved.turns, ""
        if turns and len(turns[-1]) == 1:
            *turns, last = turns
            unanswered = last[0]["content"]
        session = Session(self.session.model, settings, datetime.fromisoformat(saved.date) if saved.date else None)
        session.turns, session.start, session.summary = turns, min(saved.start, max(0, len(turns) - 1)), saved.summary
        _ = session.budget, session.params  # these raise if the settings are invalid
        self.autosave_now()
        self.session = session
        self._set_path(path if path.parent == store.folder() else self._new_path(datetime.now()))
        yield Notice("info", f"loaded {len(turns)} turns from {path}")
        for message in turns[-1] if turns else ():
            yield Notice("info", f"{message['role']}: {message['content']}")
        if unanswered:
            self.draft = unanswered
            yield Notice("warning", f"the last message has no reply; it is ready to be sent again: {unanswered}")
        own = session.model.origin()
        written = f"it was written with {saved.model}"
        if saved.template and own.template and saved.template != own.template:
            yield Notice("warning", f"{written}, which has a different chat template")
        elif saved.model and (
            saved.fingerprint != own.fingerprint if saved.fingerprint and own.fingerprint else saved.model != self.name
        ):
            yield Notice("warning", f"{written}, and the current model is {self.name}")

    def change_model(self, name: str) -> Iterator[Notice]:
        """Continue with another model, which computes the whole conversation again."""
        before = self.session
        session = Session(self.load_model(name), before.settings, before.now)
        session.turns, session.summary, session.start = before.turns, before.summary, before.start
        session.statistics = before.statistics
        self.session, self.name = session, name
        yield Notice("info", f"now {name}, with a window of {session.budget.window:,} tokens")
        yield from session.warnings

    def autosave_now(self) -> Notice | None:
        """Save if autosave is on. Return a warning if that fails, or if another program has taken the file."""
        if not self.autosave or not (self.session.turns or self._saved_at):
            return None
        before = self.path
        try:
            self.save()
        except BareloopError as error:
            return Notice("warning", f"not saved: {error}")
        if self.path != before:
            return Notice("warning", f"{before} was changed by another program; continuing in {self.path}")
        return None

    def _set_path(self, path: Path) -> None:
        """Save to this file from now on."""
        self.path = path
        self._saved_at = _modified(path)

    def _new_path(self, now: datetime | None = None) -> Path:
        """A new file, named by the session's date (or `now`), so that file name and template agree."""
        return store.folder() / f"{store.new_id(now or self.session.now)}.json"

    def _changed_by_others(self) -> bool:
        return _modified(self.path) != self._saved_at


def _modified(path: Path) -> int:
    """Modification time in nanoseconds; 0 if the file does not exist."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
