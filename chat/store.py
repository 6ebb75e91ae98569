"""Saved conversations: one JSON file each, written whole, for its owner's eyes alone. No torch."""

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
from engine.runtime.errors import BareloopError
from engine.runtime.files import local_path, parse_json, write_atomic

FORMAT, VERSION = "bareloop conversation", 1
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which no text has
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Conversation:
    """All that it takes to go on where one stopped."""

    turns: list[list[dict[str, Any]]]  # a user's message, then the assistant's, with what else is known of it
    settings: Settings = field(default_factory=Settings)
    start: int = 0  # the first turn that the model is still shown
    summary: str = ""  # of those before it
    model: str = ""
    fingerprint: str = ""  # of the model's weights
    template: str = ""  # SHA-256 of the chat template
    date: str = ""  # what the template prints as the date


def folder() -> Path:
    """Where conversations are kept by themselves."""
    import platformdirs

    return platformdirs.user_data_path("bareloop", appauthor=False) / "conversations"


def new_id(now: datetime) -> str:
    """A conversation's name, which sorts by time."""
    return now.strftime("%Y-%m-%d-%H%M%S-%f")[:-3]


def latest() -> Path:
    """The last conversation that was saved by itself."""
    found = sorted(folder().glob("*.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise BareloopError(f"there is no conversation to resume in {folder()}")
    return found[-1]


def listed(most: int = 12) -> list[tuple[str, str]]:
    """The newest conversations: their ids, and how they begin."""
    found = []
    for path in sorted(folder().glob("*.json"), reverse=True)[:most]:
        try:
            turns = load(path).turns
        except BareloopError as error:
            found.append((path.stem, f"({error})"))
            continue
        found.append((path.stem, turns[0][0]["content"] if turns else "(nothing was said)"))
    return found


def find(name: str) -> Path:
    """A conversation by its file, or by the beginning of its id."""
    path = local_path(name)
    if path.is_file():
        return path
    found = sorted(folder().glob(f"{glob.escape(name)}*.json")) if name and "/" not in name else []
    if len(found) != 1:
        what = f"{len(found)} conversations begin with {name!r}" if found else f"no file and no conversation {name!r}"
        raise BareloopError(f"{what}; conversations are kept in {folder()}")
    return found[0]


def save(conversation: Conversation, path: Path) -> None:
    """Write it; there is the old one or the new one at any moment."""
    messages = [message for turn in conversation.turns for message in turn]
    content = {"format": FORMAT, "version": VERSION, **asdict(conversation), "messages": messages}
    del content["turns"]
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n", private=True)


def load(path: Path) -> Conversation:
    """Read what `save` wrote, or a plain list of {"role", "content"}; anything else is refused in one line."""
    from engine.decoding.sampling import SamplingParams

    content = parse_json(path)
    if isinstance(content, list):
        system, turns = _turns(content, path)
        return Conversation(turns, Settings(system=system))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BareloopError(f"{path} is no conversation: neither one of bareloop's nor a list of messages")
    if content.get("version") != VERSION:
        raise BareloopError(f"{path} has version {content.get('version')!r}, and this program reads {VERSION}")
    _, turns = _turns(content.get("messages"), path)
    names = ("start", "summary", "model", "fingerprint", "template", "date")
    try:
        rest = {name: content[name] for name in names}
        settings = Settings(**content["settings"])
        SamplingParams(**settings.sampling)
        conversation = Conversation(turns, settings, **rest)
        datetime.fromisoformat(conversation.date)
    except (KeyError, TypeError, ValueError, BareloopError) as error:
        raise BareloopError(f"{path} is damaged: {error}") from error
    fields = [
        (settings.system, str),
        (settings.history, bool),
        *((number, int) for number in (settings.window, settings.reserve) if number is not None),
    ]
    if not all(type(value) is kind for value, kind in fields):
        raise BareloopError(f"{path} is damaged: its settings are none")
    kinds = [(conversation.start, int), *((rest[name], str) for name in names[1:])]
    if not all(type(value) is kind for value, kind in kinds) or not 0 <= conversation.start <= max(0, len(turns) - 1):
        raise BareloopError(f"{path} is damaged: its fields do not fit its {len(turns)} turns")
    return conversation


def _turns(messages: Any, path: Path) -> tuple[str, list[list[dict[str, Any]]]]:
    """A list of messages -> the system prompt, and turns."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise BareloopError(f"{path} has no list of messages")
    system, turns = "", list[list[dict[str, Any]]]()
    for number, message in enumerate(messages, 1):
        match message:
            case {"role": str(role), "content": str(text)} if role in ROLES and not SURROGATE.search(text):
                pass
            case _:
                raise BareloopError(
                    f"{path}, message {number} has no role of {', '.join(ROLES)} with a text as content"
                )
        if role == "system" and number == 1:
            system = text
        elif role == "user" and (not turns or len(turns[-1]) == 2):
            turns.append([_known(message)])
        elif role == "assistant" and turns and len(turns[-1]) == 1:
            turns[-1].append(_known(message))
        else:
            raise BareloopError(
                f"{path}, message {number}: a {role}'s message cannot stand here; user and assistant alternate"
            )
    return system, turns


def _known(message: Mapping[str, Any]) -> dict[str, Any]:
    known = ("role", "content", "reasoning", "finish_reason")
    return {key: message[key] for key in known if isinstance(message.get(key), str)}
