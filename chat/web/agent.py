"""The agent of a page: its model can be taken away and given back, and /model is a wish for another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from chat import store
from chat.agent import Agent
from chat.commands import MAX_TITLE, is_command
from chat.context import Message
from chat.conversation.events import Notice, Reply, Settings
from chat.conversation.recall import Memory
from chat.models.interface import ChatModel, Origin, TokenProbability
from chat.web.images import Images
from chat.web.models.interface import Absent, Models
from engine.runtime.errors import BareloopError, UsageError, quote

WITHOUT_MODEL = ("model", "title", "help", "memory", "remember", "recall", "forget")  # commands that compute nothing


@dataclass(frozen=True)
class Answer:
    """The reply that was generated last, as its turn has it, and what the model was given for it."""

    reply: Reply | None
    model: str
    prompt: Sequence[Message]


class PageAgent(Agent):
    """An agent whose session has a model only while that is loaded."""

    def __init__(
        self, models: Models, name: str, settings: Settings, autosave: bool, memory: Memory | None = None
    ) -> None:
        self.models = models
        self.wish = ""  # the model that the conversation is to go on with
        self.problem = ""  # why what was said is in no file
        self.answer: Answer | None = None
        self.shown_images = Images()
        self._untouched: str | None = None  # `_said()` of a copy in which nothing has changed yet
        super().__init__(lambda _: Absent(), name, settings, autosave, memory)
        self.screen = "page"

    @property
    def has_model(self) -> bool:
        """Whether the session can compute."""
        return not isinstance(self.session.model, Absent)

    @property
    def heading(self) -> str:
        """What a list shows: the title, or the first words."""
        return store.heading(self.session.title, list(self.session.turns))

    @property
    def is_new_copy(self) -> bool:
        """Whether it is a copy in which nothing has been said or changed yet. It has no file."""
        return self._untouched is not None

    def attach(self, model: ChatModel) -> None:
        """Give the session its model."""
        self.session.model = model

    def detach(self) -> None:
        """Take the session's model away, so that its memory can be freed."""
        if self.has_model:
            self.session.model = Absent(self.session.model.origin() if self.autosave else None)

    def change_settings(self, changes: Mapping[str, Any]) -> None:
        """Change settings to values that a browser sent. Raises `BareloopError` for invalid ones."""
        try:
            wanted = store.checked_settings(replace(self.session.settings, **changes))
        except TypeError as error:
            raise UsageError(f"settings: {error}") from None
        self.session.configure(**asdict(wanted))

    def become_copy(self, other: Agent) -> None:
        """Take over another conversation. There is no file until something is said or changed."""
        self.copy(other)
        self.add_to_title(" (copy)")
        self._untouched = self._said()

    def add_to_title(self, text: str) -> None:
        """Tell this conversation from another one of the same title, or of the same first words."""
        self.session.title = f"{self.heading[: MAX_TITLE - len(text)]}{text}"

    def _said(self) -> str:
        """A hash of what users have said and chosen, whatever computes the replies."""
        return store.digest(replace(self.conversation(), fingerprint="", template="", url=""))

    # The file.

    def open_file(self, path: Path) -> list[str]:
        """Read the conversation of a file. -> warnings. Raises `BareloopError` if it cannot be read."""
        return self.open(store.load(path), path)

    def open(self, saved: store.Conversation, path: Path) -> list[str]:
        """Take over the content of a file, in place of what is in memory, which must be in a file. -> warnings"""
        before, autosave = self.name, self.autosave
        name = self.models.resolve(saved.model)
        self.name, self.autosave = name or before, False
        try:
            list(self.take(saved, path))  # its notices are the terminal's
            warning = "" if name is not None else self.other_origin(saved)  # else only its name may have changed
        except BareloopError:
            self.name = before
            raise
        finally:
            self.autosave = autosave
        if not self.has_model or self.name != before:
            self.session.model = Absent(Origin(saved.fingerprint, saved.template, saved.url))
        return [warning] if warning else []

    def was_changed_by_others(self) -> bool:
        """Whether another program has written the conversation's file, and nothing in memory is lost if it is read."""
        return self.autosave and not self._has_failed and self._changed_by_others()

    def reread(self) -> list[str]:
        """Read the file that another program has written. -> warnings

        If that is none of ours any more, what is in memory stays, and is saved elsewhere from now on.
        """
        draft = self.draft, self.draft_images
        try:
            return self.open_file(self.path)
        except BareloopError as error:
            before, after = self.path, self._new_path()
            self._set_path(after)
            self.autosave_now()
            return [f"another program has changed {before}: {error}; what was said here is kept in {after.name}"]
        finally:
            # a message without a reply in the file is one that the other program is answering
            self.draft, self.draft_images = draft

    def autosave_now(self) -> Notice | None:
        """Save if there is anything to save. -> a warning if that fails"""
        if self._untouched is not None:
            if self._said() == self._untouched:
                return None
            self._untouched = None
        notice = super().autosave_now()
        self.problem = notice.text if notice is not None and self._has_failed else ""
        return notice if self._has_failed else None  # of another file the page tells itself

    def take_problem(self) -> Notice | None:
        """A failed autosave that has not been told yet."""
        problem, self._pending = self._pending, None
        return problem

    # The model.

    def change_model(self, name: str) -> Iterator[Notice]:
        """Note which model is wanted. Two models at once may be more than the memory holds."""
        resolved = self.models.resolve(name)
        if resolved is None:
            raise UsageError(f"there is no model {quote(name)} here; use one of: {', '.join(self.models.names)}")
        self.wish = resolved
        yield from ()

    def needs_model(self, line: str) -> bool:
        """Whether a line can only be handled with the model."""
        words = line.split(maxsplit=1)
        return not (is_command(line.strip()) and words[0][1:] in WITHOUT_MODEL)

    def note_answer(self, prompt: Sequence[Message]) -> None:
        """Remember for which prompt the last reply was generated."""
        session = self.session
        self.answer = Answer(session.tree.node(len(session.turns) - 1).reply, self.name, prompt)

    def last_prompt(self, shown: Sequence[TokenProbability]) -> tuple[int | None, int | None]:
        """Of the tokens of the window, how many were cached for the last reply, and how many its prompt had.

        None if they do not begin with that prompt any more, or nothing is known of it.
        """
        answer, session = self.answer, self.session
        reply = session.tree.node(len(session.turns) - 1).reply
        if answer is None or reply is None or answer.reply is not reply or answer.model != self.name:
            return None, None
        prompt = [token for token, _ in session.model.tokens(answer.prompt)]
        if len(prompt) != reply.prompt_tokens or prompt != [token.id for token in shown[: len(prompt)]]:
            return None, None
        return min(len(prompt), reply.cached_tokens), len(prompt)
