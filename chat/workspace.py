"""One user's open conversation: the session, the model it talks to, and the file it is saved in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from chat import store
from chat.conversation.events import Notice, Settings
from chat.conversation.recall import NOTHING, Memory
from chat.conversation.session import Session
from chat.conversation.tree import Tree
from chat.images import Content, ImagePart, content_of, count_images, images_of, read_image, shown, text_of
from chat.models.interface import ChatModel
from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import local_path


class Workspace:
    """A conversation with its file, saved after every turn. `load_model` maps a name to a loaded model."""

    def __init__(
        self,
        load_model: Callable[[str], ChatModel],
        name: str,
        settings: Settings,
        autosave: bool = True,
        memory: Memory | None = None,
    ) -> None:
        """`memory`: of which this conversation gets a view of its own; None: nothing is recalled or remembered."""
        self.load_model = load_model
        self.name = name
        self.autosave = autosave
        self.screen = "terminal"  # or page: which commands there are
        self.stream = True
        self.draft = ""  # a message without a reply, offered once to be sent again
        self.draft_images: list[ImagePart] = []  # its images
        self.images: list[ImagePart] = []  # that go with the next message
        self.memory = None if memory is None else memory.bound("")
        self.session = Session(load_model(name), settings, memory=self.memory)
        self._has_failed = False  # the last autosave
        self._copied = ""  # the hash of what the user has saved in another file
        self._set_path(self._new_path())

    def begin(self) -> None:
        """Start a new conversation, in a file of its own. Raises `BareloopError` if this one cannot be saved."""
        self._save_before_leaving()
        self.session.clear()
        self.images = []
        self._set_path(self._new_path())

    def conversation(self) -> store.Conversation:
        """The content of the conversation's file, now. From any thread."""
        session, origin = self.session, self.session.model.origin()
        turns, branches = session.written()
        return store.Conversation(
            turns=turns,
            settings=session.settings,
            start=session.start,
            summary=session.summary,
            title=session.title,
            branches=branches,
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
        conversation = self.conversation()
        store.save(conversation, path)
        self._copied = store.digest(conversation)
        return path

    def load(self, path: Path) -> Iterator[Notice]:
        """Continue a saved conversation; the current one stays in its own file.

        Raises `BareloopError`, and changes nothing, if the file cannot be read, or the current one not be saved.
        """
        yield from self.take(store.load(path), path)

    def take(self, saved: store.Conversation, path: Path) -> Iterator[Notice]:
        """The same for the content of a file. It stays in that file if it is one of the store."""
        settings = saved.settings
        if not saved.model:  # a plain list of messages: keep the current settings
            current = self.session.settings
            settings = replace(current, system=saved.settings.system or current.system)
        unanswered: Content = ""
        tree = saved.tree()
        if tree.path and len(tree.path[-1].turn) == 1:
            last, unanswered = len(tree.path) - 1, tree.path[-1].turn[0]["content"]
            tree.remove(last)
            if (
                len(tree.path) > last and tree.path[last].turn[0]["content"] == unanswered
            ):  # it was to get another reply
                unanswered = ""
        date = datetime.fromisoformat(saved.date) if saved.date else None
        session = _continued(saved, tree, unanswered, self.session.model, settings, date)
        session.memory = self.memory
        turns = session.turns
        _ = session.budget, session.params  # these raise if the settings are invalid
        self._save_before_leaving()
        self.session = session
        if self.memory is not None:
            self.memory.recalled = NOTHING
        self._set_path(path if path.parent == store.folder() else self._new_path(datetime.now()))
        yield Notice("info", f"loaded {len(turns)} turns from {path}")
        for message in turns[-1] if turns else ():
            yield Notice("info", f"{message['role']}: {shown(message['content'])}")
        self.images = []
        if unanswered:
            self.draft, self.draft_images = text_of(unanswered), images_of(unanswered)
            yield Notice("warning", f"the last message has no reply; it is ready to be sent again: {shown(unanswered)}")
        if text := self.other_origin(saved):
            yield Notice("warning", text)
        if not session.model.takes_images and any(map(count_images, turns)):
            yield Notice("warning", f"it has images, and {self.name} takes none; /model changes to another model")

    def other_origin(self, saved: store.Conversation) -> str:
        """What a user should know if another model has written a conversation than the current one; else nothing."""
        own, written = self.session.model.origin(), f"it was written with {saved.model}"
        if saved.template and own.template and saved.template != own.template:
            return f"{written}, which has a different chat template"
        are_known = bool(saved.fingerprint and own.fingerprint)
        differs = saved.fingerprint != own.fingerprint if are_known else saved.model != self.name
        return f"{written}, and the current model is {self.name}" if saved.model and differs else ""

    def change_model(self, name: str) -> Iterator[Notice]:
        """Continue with another model, which computes the whole conversation again."""
        before = self.session
        model = self.load_model(name)
        if not model.takes_images and any(map(count_images, before.turns)):
            raise UsageError(f"this conversation has images, and {name} takes none; /clear starts a new one")
        if not model.takes_images and self.images:
            raise UsageError(f'images wait for the next message, and {name} takes none; /image "" removes them')
        session = _continued(before, before.tree, before.unanswered, model, before.settings, before.now)
        session.statistics, session.memory = before.statistics, self.memory
        session.recount_memories()
        self.session, self.name = session, name
        yield Notice("info", f"now {name}, with a window of {session.budget.window:,} tokens")
        yield from session.warnings

    def copy(self, other: Workspace) -> None:
        """Take over another workspace's conversation, in a file of its own; the settings stay."""
        before, own = other.session, self.session
        self.session = _continued(before, before.tree.copy(), before.unanswered, own.model, own.settings, before.now)
        self.session.memory = self.memory

    @property
    def is_saved(self) -> bool:
        """Whether the file has all that has been said, as far as it was saved after it."""
        is_as_saved = not self._has_failed and _modified(self.path) == self._saved_at
        return self._is_new or (self.autosave and is_as_saved)

    def autosave_now(self) -> Notice | None:
        """Save if autosave is on. Return a warning if that fails, or if another program has taken the file."""
        if not self.autosave or self._is_new:
            return None
        before, self._has_failed = self.path, True
        try:
            self.save()
            self._has_failed = False
        except BareloopError as error:
            return Notice("warning", f"not saved: {error}")
        if self.path != before:
            return Notice("warning", f"{before} was changed by another program; continuing in {self.path}")
        return None

    def add_image(self, name: str) -> ImagePart:
        """Add an image to those that go with the next message. `name`: of its file. Raises `BareloopError`."""
        if not self.session.model.takes_images:
            raise UsageError(f"{self.name} takes no images; use a vision-language model such as SmolVLM")
        image = read_image(name)
        self.images.append(image)
        return image

    def keep(self, message: str, images: Sequence[ImagePart] = ()) -> None:
        """Save a message that cannot be answered yet."""
        self.session.unanswered = content_of(message, images)
        self.autosave_now()

    def _save_before_leaving(self) -> None:
        """Save what another conversation is about to replace. Raises `BareloopError` if it would be lost."""
        warning = self.autosave_now()
        if warning is not None and self._has_failed and self._copied != store.digest(self.conversation()):
            raise BareloopError(
                f"{warning.text}; so this conversation stays open: free some space, or /save it in another place first"
            )

    @property
    def _is_new(self) -> bool:
        """Whether nothing has been said, so that there is no file."""
        return not (self.session.turns or self.session.unanswered or self._saved_at)

    def _set_path(self, path: Path) -> None:
        """Save to this file from now on."""
        self.path = path
        self._saved_at = _modified(path)
        if self.memory is not None:
            self.memory.conversation = path.stem

    def _new_path(self, now: datetime | None = None) -> Path:
        """A new file, named by the session's date (or `now`), so that file name and template agree."""
        return store.new_path(now or self.session.now)

    def _changed_by_others(self) -> bool:
        """Whether another program has written the file. If it is gone, it is written again."""
        return _modified(self.path) not in (0, self._saved_at)


def _continued(
    source: Session | store.Conversation,
    tree: Tree,
    unanswered: Content,
    model: ChatModel,
    settings: Settings,
    now: datetime | None,
) -> Session:
    """A session that goes on with what was said in another, or in a file."""
    session = Session(model, settings, now)
    session.restore(tree, source.start, source.summary, source.title, unanswered)
    return session


def _modified(path: Path) -> int:
    """Modification time in nanoseconds; 0 if the file does not exist."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
