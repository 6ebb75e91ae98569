"""A conversation as a file to take away."""

from __future__ import annotations

import re

from chat import store
from chat.agent import Agent
from chat.images import shown


def saved(agent: Agent) -> bytes:
    """The content of the conversation's file."""
    return store.encode(agent.conversation()).encode()


def markdown(agent: Agent) -> str:
    """What was said, below a heading, the model's name and the date: without reasoning, and of images the names."""
    session = agent.session
    heading = store.heading(session.title, list(session.turns))
    parts = [f"# {heading}"] if heading else []
    parts.append(f"*{agent.name}, {session.now:%Y-%m-%d}*")
    if session.settings.system:
        parts.append(f"**System**\n\n{session.settings.system}")
    for turn in list(session.turns):
        for message in turn:
            name = "User" if message["role"] == "user" else "Assistant"
            parts.append(f"**{name}**\n\n{shown(message['content']).strip()}")
    return "\n\n".join(parts) + "\n"


def file_name(agent: Agent, id: str) -> str:
    """A name for the file, without its ending: the title as far as every system takes it, else the id."""
    return re.sub(r"[^A-Za-z0-9]+", "-", agent.session.title).strip("-")[:60] or id
