"""Saved conversations: one JSON file each, replaced atomically, readable only by its owner. Loads without torch."""

from __future__ import annotations

import glob
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from chat.conversation.events import Settings
from chat.conversation.tree import Tree
from chat.images import checked_content, shown, text_of
from engine.decoding.params import SamplingParams
from engine.runtime.errors import BareloopError, UsageError, quote
from engine.runtime.files import local_path, parse_json, write_atomic
from engine.text.surrogates import SURROGATE, without_surrogates

FORMAT, VERSION = "bareloop conversation", 1
ROLES = ("system", "user", "assistant")
HEADING = 80  # characters of a first message

_naming = threading.Lock()
_named: set[Path] = set()  # files that this program has named, and may not have written yet


@dataclass(frozen=True)
class Conversation:
    """Everything needed to continue a conversation."""

    turns: list[list[dict[str, Any]]]  # a user message, maybe with images, then a reply, with reasoning and other marks
    settings: Settings = field(default_factory=Settings)
    start: int = 0  # index of the first turn in the prompt
    summary: str = ""  # of the turns before it
    model: str = ""
    fingerprint: str = ""  # of the model's weights
    template: str = ""  # SHA-256 of the chat template
    date: str = ""  # the date that the template prints, ISO 8601
    url: str = ""  # of the server, without credentials
    title: str = ""  # chosen by the user
    branches: list[dict[str, Any]] = field(default_factory=list)  # the versions off the path, see `Tree.branches`

    def tree(self) -> Tree:
        """All versions of the turns. Raises `ValueError` if the branches have no place."""
        return Tree.restore(
            self.turns, [(branch["after"], branch["place"], _pairs(branch["messages"])) for branch in self.branches]
        )


def folder() -> Path:
    """The folder of automatically saved conversations."""
    import platformdirs

    return platformdirs.user_data_path("bareloop", appauthor=False) / "conversations"


def new_id(now: datetime) -> str:
    """A conversation's id, which sorts by time."""
    return now.strftime("%Y-%m-%d-%H%M%S-%f")[:-3]


def new_path(now: datetime) -> Path:
    """A file for a new conversation, named by the time: the next millisecond that no other conversation has."""
    with _naming:
        while (path := folder() / f"{new_id(now)}.json") in _named or path.exists():
            now += timedelta(milliseconds=1)
        _named.add(path)
    return path


def latest() -> Path:
    """The conversation that was saved last."""
    paths = sorted(folder().glob("*.json"), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise BareloopError(f"there is no conversation to resume in {folder()}")
    return paths[-1]


def listed(limit: int = 12) -> list[tuple[str, str]]:
    """Ids and headings of the newest conversations."""
    rows = []
    for path in sorted(folder().glob("*.json"), reverse=True)[:limit]:
        try:
            saved = load(path)
            rows.append((path.stem, heading(saved.title, saved.turns) or "(no messages)"))
        except BareloopError as error:
            rows.append((path.stem, f"({error})"))
    return rows


def heading(title: str, turns: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """What a list shows of a conversation: its title, or the beginning of the first message in one line.

    Images are only named if that message has no text.
    """
    first = turns[0][0]["content"] if turns else ""
    words = title or " ".join((text_of(first).strip() or shown(first))[: 4 * HEADING].split())
    return words if title or len(words) <= HEADING else f"{words[: HEADING - 1]}…"


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
    write_atomic(path, encode(conversation), private=True)


def encode(conversation: Conversation) -> str:
    """The content of a conversation's file: JSON that can always be written, so halves of UTF-16 pairs are replaced."""
    messages = [message for turn in conversation.turns for message in turn]
    content = {"format": FORMAT, "version": VERSION, **asdict(conversation), "messages": messages}
    del content["turns"]
    return without_surrogates(json.dumps(content, indent=1, ensure_ascii=False)) + "\n"


def digest(conversation: Conversation) -> str:
    """A hash of what `encode` returns, which may be megabytes of images."""
    return hashlib.sha256(encode(conversation).encode()).hexdigest()


def load(path: Path) -> Conversation:
    """Read a file written by `save`, or a JSON list of {"role", "content"}. Raises `BareloopError` otherwise."""
    return parse(parse_json(path), str(path))


def parse(content: Any, where: str) -> Conversation:
    """A conversation from the parsed content of a file. `where`: how errors name the file.

    Raises `BareloopError` for anything that neither `encode` has made nor is a list of {"role", "content"}.
    """
    _check_unicode(content, where)
    if isinstance(content, list):
        system, turns = _turns(content, where)
        return Conversation(turns, Settings(system=system))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BareloopError(f"{where} is neither a saved conversation nor a list of messages")
    if content.get("version") != VERSION:
        raise BareloopError(
            f"{where} has version {quote(content.get('version'))}; this program reads version {VERSION}"
        )
    _, turns = _turns(content.get("messages"), where)
    names = ("summary", "model", "fingerprint", "template", "date")
    try:
        texts = {name: content[name] for name in names} | {name: content.get(name, "") for name in ("url", "title")}
        settings = checked_settings(Settings(**content["settings"]))
        branches = _branches(content.get("branches", []), where)
        conversation = Conversation(turns, settings, content["start"], **texts, branches=branches)
        datetime.fromisoformat(conversation.date)
        conversation.tree()
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise BareloopError(f"{where} is damaged: {error}") from error
    types_match = type(conversation.start) is int and all(type(text) is str for text in texts.values())
    if not types_match or not 0 <= conversation.start <= max(0, len(turns) - 1):
        raise BareloopError(f"{where} is damaged: its fields do not fit its {len(turns)} turns")
    return conversation


def _check_unicode(content: Any, where: str) -> None:
    """Raise `BareloopError` if any text of a file has half of a UTF-16 pair: it could not be written again."""
    try:
        text = json.dumps(content, ensure_ascii=False)
    except RecursionError:
        raise BareloopError(f"{where} is damaged: it is nested too deeply") from None
    if match := SURROGATE.search(text):
        before = text[max(0, match.start() - 30) : match.start()]
        raise BareloopError(f"{where} is damaged: half of a UTF-16 pair after {quote(before)}")


def checked_settings(settings: Settings) -> Settings:
    """The same settings. Raises `UsageError` if one of them has the wrong type or value."""
    types = [
        (settings.system, str),
        (settings.history, bool),
        (settings.sampling, dict),
        *((tokens, int) for tokens in (settings.window, settings.reserve) if tokens is not None),
    ]
    if not all(type(value) is expected for value, expected in types):
        raise UsageError("a setting has the wrong type")
    try:
        SamplingParams(**settings.sampling)
    except TypeError as error:  # an unknown name
        raise UsageError(f"sampling: {error}") from error
    return settings


def _branches(branches: Any, where: str) -> list[dict[str, Any]]:
    """Check the versions off the path, all but their places."""
    if not isinstance(branches, list):
        raise ValueError("its branches are not a list")
    result = []
    for number, branch in enumerate(branches, 1):
        if not isinstance(branch, dict) or any(type(branch.get(name)) is not int for name in ("after", "place")):
            raise ValueError(f"branch {number} needs numbers as after and place")
        system, turns = _turns(branch.get("messages"), f"{where}, branch {number}")
        if system or not turns or len(turns[-1]) < 2:
            raise ValueError(f"branch {number} needs messages, of which the last is a reply")
        messages = [message for turn in turns for message in turn]
        result.append({"after": branch["after"], "place": branch["place"], "messages": messages})
    return result


def _pairs(messages: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Turns of messages that alternate; the last may have no reply."""
    return [list(messages[start : start + 2]) for start in range(0, len(messages), 2)]


def _turns(messages: Any, where: str) -> tuple[str, list[list[dict[str, Any]]]]:
    """Split a list of messages into the system prompt and turns."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise BareloopError(f"{where} has no list of messages")
    system, turns = "", list[list[dict[str, Any]]]()
    for number, message in enumerate(messages, 1):
        match message:
            case {"role": str(role), "content": str(text)} if role in ROLES:
                pass
            case {"role": "user" as role, "content": list()}:
                text = ""
            case _:
                raise BareloopError(
                    f"{where}, message {number}: needs a role ({', '.join(ROLES)}) and a text as content; of a user's "
                    "message also images and a text"
                )
        if role == "system" and number == 1:
            system = text
        elif role == "user" and (not turns or len(turns[-1]) == 2):
            try:
                turns.append([_known_keys(message) | {"content": checked_content(message["content"])}])
            except UsageError as error:
                raise BareloopError(f"{where}, message {number}: {error}") from None
        elif role == "assistant" and turns and len(turns[-1]) == 1:
            turns[-1].append(_known_keys(message))
        else:
            raise BareloopError(f"{where}, message {number}: unexpected role {role}; user and assistant must alternate")
    return system, turns


def _known_keys(message: Mapping[str, Any]) -> dict[str, Any]:
    names, memories = ("role", "content", "reasoning", "finish_reason"), message.get("memories")
    is_list = isinstance(memories, list) and all(type(number) is int for number in memories)
    known = {key: message[key] for key in names if isinstance(message.get(key), str)}
    return known | ({"memories": memories} if is_list and memories else {})
