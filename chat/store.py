"""Saved conversations: one JSON file each, replaced atomically, readable only by its owner. Loads without torch."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from chat.events import Settings
from engine.decoding.params import SamplingParams
from engine.runtime.errors import BareloopError, quote
from engine.runtime.files import local_path, parse_json, write_atomic

FORMAT, VERSION = "bareloop conversation", 1
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a UTF-16 pair; valid text has none
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Conversation:
    """Everything needed to continue a conversation."""

    turns: list[list[dict[str, Any]]]  # a user message, then the assistant's, with reasoning and finish_reason
    settings: Settings = field(default_factory=Settings)
    start: int = 0  # index of the first turn in the prompt
    summary: str = ""  # of the turns before it
    model: str = ""
    fingerprint: str = ""  # of the model's weights
    template: str = ""  # SHA-256 of the chat template
    date: str = ""  # the date that the template prints, ISO 8601
    url: str = ""  # of the server, without credentials


def folder() -> Path:
    """The folder of automatically saved conversations."""
    import platformdirs

    return platformdirs.user_data_path("bareloop", appauthor=False) / "conversations"


def new_id(now: datetime) -> str:
    """A conversation's id, which sorts by time."""
    return now.strftime("%Y-%m-%d-%H%M%S-%f")[:-3]


def latest() -> Path:
    """The conversation that was saved last."""
    paths = sorted(folder().glob("*.json"), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise BareloopError(f"there is no conversation to resume in {folder()}")
    return paths[-1]


def listed(limit: int = 12) -> list[tuple[str, str]]:
    """Ids and first messages of the newest conversations."""
    rows = []
    for path in sorted(folder().glob("*.json"), reverse=True)[:limit]:
        try:
            turns = load(path).turns
        except BareloopError as error:
            rows.append((path.stem, f"({error})"))
            continue
        rows.append((path.stem, turns[0][0]["content"] if turns else "(no messages)"))
    return rows


def find(name: str) -> Path:
    """Find a conversation by its file, or by the beginning of its id."""
    path = local_path(name)
    if path.is_file():
        return path
    matches = sorted(folder().glob(f"{glob.escape(name)}*.json")) if name and "/" not in name else []
    if len(matches) != 1:
        problem = (
            f"{len(matches)} conversations begin with {quote(name)}"
            if matches
            else f"no file or conversation {quote(name)}"
        )
        raise BareloopError(f"{problem}; conversations are kept in {folder()}")
    return matches[0]


def save(conversation: Conversation, path: Path) -> None:
    """Write a conversation to a file, atomically."""
    messages = [message for turn in conversation.turns for message in turn]
    content = {"format": FORMAT, "version": VERSION, **asdict(conversation), "messages": messages}
    del content["turns"]
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n", private=True)


def load(path: Path) -> Conversation:
    """Read a file written by `save`, or a JSON list of {"role", "content"}. Raises `BareloopError` otherwise."""
    content = parse_json(path)
    if isinstance(content, list):
        system, turns = _turns(content, path)
        return Conversation(turns, Settings(system=system))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BareloopError(f"{path} is neither a saved conversation nor a list of messages")
    if content.get("version") != VERSION:
        raise BareloopError(f"{path} has version {quote(content.get('version'))}; this program reads version {VERSION}")
    _, turns = _turns(content.get("messages"), path)
    names = ("start", "summary", "model", "fingerprint", "template", "date")
    try:
        values = {name: content[name] for name in names} | {"url": content.get("url", "")}
        settings = Settings(**content["settings"])
        SamplingParams(**settings.sampling)
        conversation = Conversation(turns, settings, **values)
        datetime.fromisoformat(conversation.date)
    except (KeyError, TypeError, ValueError, BareloopError) as error:
        raise BareloopError(f"{path} is damaged: {error}") from error
    setting_types = [
        (settings.system, str),
        (settings.history, bool),
        *((tokens, int) for tokens in (settings.window, settings.reserve) if tokens is not None),
    ]
    if not all(type(value) is expected for value, expected in setting_types):
        raise BareloopError(f"{path} is damaged: a setting has the wrong type")
    field_types = [(conversation.start, int), *((values[name], str) for name in (*names[1:], "url"))]
    types_match = all(type(value) is expected for value, expected in field_types)
    if not types_match or not 0 <= conversation.start <= max(0, len(turns) - 1):
        raise BareloopError(f"{path} is damaged: its fields do not fit its {len(turns)} turns")
    return conversation


def _turns(messages: Any, path: Path) -> tuple[str, list[list[dict[str, Any]]]]:
    """Split a list of messages into the system prompt and turns."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise BareloopError(f"{path} has no list of messages")
    system, turns = "", list[list[dict[str, Any]]]()
    for number, message in enumerate(messages, 1):
        match message:
            case {"role": str(role), "content": str(text)} if role in ROLES and not SURROGATE.search(text):
                pass
            case _:
                raise BareloopError(
                    f"{path}, message {number}: needs a role ({', '.join(ROLES)}) and a text as content"
                )
        if role == "system" and number == 1:
            system = text
        elif role == "user" and (not turns or len(turns[-1]) == 2):
            turns.append([_known_keys(message)])
        elif role == "assistant" and turns and len(turns[-1]) == 1:
            turns[-1].append(_known_keys(message))
        else:
            raise BareloopError(f"{path}, message {number}: unexpected role {role}; user and assistant must alternate")
    return system, turns


def _known_keys(message: Mapping[str, Any]) -> dict[str, Any]:
    names = ("role", "content", "reasoning", "finish_reason")
    return {key: message[key] for key in names if isinstance(message.get(key), str)}
