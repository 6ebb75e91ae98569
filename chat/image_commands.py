"""The slash command /image: images for the next message. Loads without torch."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from chat.conversation.events import ChatEvents
from chat.images import ImagePart, content_of, described
from chat.registry import TERMINAL, command, info
from engine.runtime.errors import BareloopError
from engine.runtime.files import local_path

if TYPE_CHECKING:
    from chat.conversation.session import Session
    from chat.workspace import Workspace


@command("[FILE]", TERMINAL)
def image(workspace: Workspace, rest: str) -> ChatEvents:
    """send an image with the next message; several are sent in order ("" removes them; without FILE: list them)"""
    if rest in ('""', "''"):
        workspace.images.clear()
    elif rest:
        added = workspace.add_image(_path(rest))
        yield info(label(workspace.session, added))
        return
    labels = [label(workspace.session, each) for each in workspace.images]
    yield info("\n".join(labels) or "no images for the next message")


def label(session: Session, image: ImagePart) -> str:
    """An image with its size and the tokens that it takes, if they can be counted: `[image cat.png, …, 85 tokens]`."""
    with_it, without = ([{"role": "user", "content": content_of(".", images)}] for images in ([image], []))
    try:
        tokens = session.count(with_it) - session.count(without)
    except BareloopError:  # a server that does not answer, or rejects it: it says so when the message is sent
        return described(image)
    return described(image, tokens)


def _path(text: str) -> str:
    """A file's name as a user types it, or as a terminal inserts one that is dropped on it: quoted, or with escapes."""
    if local_path(text).exists():
        return text
    try:
        words = shlex.split(text)
    except ValueError:  # an apostrophe
        return text
    return words[0] if len(words) == 1 else text
