"""A line that is being handled: a message or a command."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from chat.commands import is_command
from chat.context import Message
from chat.conversation.events import Notice
from chat.conversation.tree import Turn
from chat.images import ImagePart, images_of, text_of
from chat.web.agent import PageAgent
from chat.web.snapshot import Running
from engine.runtime.errors import BareloopError, is_out_of_memory
from engine.serve.protocol.errors import ApiError

LOG = logging.getLogger("bareloop.chat")


class Run:
    """A line, and how far it has come."""

    def __init__(self, line: str, tab: str, images: Sequence[ImagePart] = ()) -> None:
        """`tab`: who has sent it. `images`: of a message."""
        self.line, self.tab, self.images = line, tab, images
        self.is_stopped = False
        self.is_waiting = False  # for the session, or for a model: it can be cancelled
        self.has_session = False  # so that something may have changed
        self.has_begun = False
        self.turn: Turn | None = None  # that gets a reply
        self.prompt: list[Message] = []  # of the reply
        self.is_answered = False  # the reply, or its part, is in the conversation
        self.task: asyncio.Task[None] | None = None

    @property
    def is_message(self) -> bool:
        """Whether it is no command."""
        return not is_command(self.line.strip())

    @property
    def draft(self) -> str:
        """What the user wrote and would lose, as it has got no reply."""
        has_text = self.is_message or self.line.strip().split(maxsplit=1)[0] in ("/edit", "/branch")
        return self.line if has_text and not self.is_answered else ""

    @property
    def has_draft(self) -> bool:
        """Whether the user would lose text or images."""
        return bool(self.draft or (self.images and not self.is_answered))

    def begin(self, agent: PageAgent) -> Running:
        """A reply begins. -> its turn, the message, and what the reply has already"""
        turns = agent.session.turns
        self.turn, self.prompt = turns[-1], agent.session.visible_messages()
        content, reply = self.turn[0]["content"], self.turn[1] if len(self.turn) > 1 else {}
        images = agent.shown_images.tell(images_of(content))
        text, reasoning = reply.get("content", ""), reply.get("reasoning", "")
        return Running(len(turns) - 1, text_of(content), images, text, reasoning)

    def end(self, agent: PageAgent) -> None:
        """Note whether the turn has a reply. Also one that an error has cut off."""
        last = agent.session.turns[-1:]
        self.is_answered = self.turn is not None and len(self.turn) > 1 and bool(last) and last[0] is self.turn

    def stopped(self, model: str) -> Notice:
        """What the user is told when it was stopped while it waited."""
        return Notice("stopped", f"stopped; the model is still {model}" if self.has_begun else "stopped before a reply")


def as_notice(error: Exception) -> Notice:
    """What the user is told when it has failed."""
    if isinstance(error, ApiError | BareloopError):
        return Notice("error", str(error))
    if is_out_of_memory(error):
        return Notice("error", "memory has run out; use a smaller model, or a shorter conversation")
    LOG.error("a line failed: %s: %s", type(error).__name__, error, exc_info=LOG.isEnabledFor(logging.DEBUG))
    return Notice("error", f"internal error, see the program's output: {type(error).__name__}")
