"""The files of conversations: their rows in a list, search, and where one is."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from chat import store
from chat.images import shown
from engine.runtime.errors import BareloopError

Row = dict[str, Any]
DELETED = "deleted"  # the folder beside the conversations


class Files:
    """The conversations of one folder. All methods may be called in a thread, one at a time."""

    def __init__(self, name: str = ".") -> None:
        """`name`: of the folder, in that of the store."""
        self.name = name
        self._rows: dict[Path, tuple[int, Row]] = {}  # as of the time of the file

    @property
    def folder(self) -> Path:
        return store.folder() / self.name

    def rows(self) -> list[Row]:
        """A row for each file; only those that have changed are read. One that is damaged says so."""
        known: dict[Path, tuple[int, Row]] = {}
        for path in self.folder.glob("*.json"):
            with suppress(OSError, UnicodeEncodeError):  # it has just gone, or has a name that is not text
                path.name.encode()
                changed = path.stat().st_mtime_ns
                known[path] = self._rows.get(path, (0, {}))
                if known[path][0] != changed:
                    known[path] = changed, _row(path, changed)
        self._rows = known
        return [dict(row) for _, row in known.values()]

    def find(self, id: str) -> Path | None:
        """The file of a conversation, found among all, as an id of a request must not become a path."""
        return next((path for path in self.folder.glob("*.json") if path.stem == id), None)

    def search(self, text: str) -> set[str]:
        """The ids of the conversations of which a message or the title has this text, in any case."""
        return {path.stem for path in self.folder.glob("*.json") if _has(path, text)}


def move(path: Path, target: Path) -> None:
    """Move a file. Raises `BareloopError` if that fails."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    except OSError as error:
        raise BareloopError(f"cannot move {path}: {error.strerror}") from error


def has_text(content: Any, text: str) -> bool:
    """Whether a message of a conversation, as `store.encode` writes it, or its title has this text, in any case."""
    saved = content if isinstance(content, dict) else {"messages": content}
    lists = [saved.get("messages"), *(branch.get("messages") for branch in saved.get("branches", []))]
    texts = [saved.get("title", ""), *(shown(message["content"]) for messages in lists for message in messages)]
    return any(text.casefold() in each.casefold() for each in texts)


def _has(path: Path, text: str) -> bool:
    """The same for a file. Only those that may have it are parsed."""
    written = json.dumps(text, ensure_ascii=False)[1:-1].casefold()
    try:
        raw = path.read_text(encoding="utf-8")
        return (written in raw.casefold() or "\\u" in raw) and has_text(json.loads(raw), text)
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, IndexError, TypeError):  # damaged
        return False


def _row(path: Path, changed: int) -> Row:
    """A file in the list."""
    updated = datetime.fromtimestamp(changed / 1e9).astimezone().isoformat(timespec="seconds")
    try:
        saved = store.load(path)
        title, turns = store.heading(saved.title, saved.turns), len(saved.turns)
    except BareloopError as error:
        title, turns = f"({error})", 0
    except Exception as error:  # a file that nobody has thought of must not hide the others
        title, turns = f"({path} is damaged: {type(error).__name__})", 0
    return {"id": path.stem, "title": title, "updated": updated, "turns": turns, "running": False}
