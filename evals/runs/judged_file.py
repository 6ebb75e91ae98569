"""A file of answers or judgments while it is being written: appended to, sorted, started over. No torch."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError
from engine.runtime.files import AppendFile, write_atomic
from evals.runs.judged import (
    Answer,
    Judgment,
    PairJudgment,
    as_line,
    complete_lines,
    damaged,
    judgment_in,
    object_in,
)


class JudgedFile:
    """A file of answers or judgments, opened for appending. Only one process can have it open."""

    def __init__(self, path: Path, fresh: bool = False) -> None:
        """Open or create. With `fresh`, start over: the old file is renamed to `*.old` when a line is appended.

        Raises `BareloopError` if another process has it open, or it cannot be written.
        """
        self.path = path
        self._file = AppendFile(path)
        self._replaces_file = fresh
        if object_in(self._file.torn) is not None:  # a whole line, whose end an editor has removed
            self._file.append(self._file.torn + "\n")

    def append(self, entry: Answer | Judgment | PairJudgment) -> None:
        """Append a line. It is handed to the system when this returns."""
        self.rename_old()
        self._file.append(as_line(entry))

    def rename_old(self) -> None:
        """With `fresh`, rename the old file now, and not when a line is appended."""
        if not self._replaces_file:
            return
        if self.path.stat().st_size:
            rename_to_old(self.path)
            self._reopen()
        self._replaces_file = False

    def set_aside(self, keys: Collection[Any]) -> None:
        """Move judgments of these keys to a file `*.old`: programs that count every line must not count them.

        Raises `BareloopError` that names the line of a damaged file.
        """
        kept: list[str] = []
        old: list[str] = []
        for number, text, row in complete_lines(self.path):
            entry = None if row is None else judgment_in(row)
            if entry is None:
                raise damaged(self.path, number, "a judgment")
            (old if entry.key in keys else kept).append(f"{text}\n")
        if old:
            write_atomic(_old(self.path), "".join(old))
            write_atomic(self.path, "".join(kept))
            self._reopen()

    def _reopen(self) -> None:
        """Open the file that is at the path now."""
        old, self._file = self._file, AppendFile(self.path)
        old.close()

    def close(self) -> None:
        """Close the file and release its lock. A file that is still empty is removed."""
        self._file.close()

    def __enter__(self) -> JudgedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def rename_to_old(path: Path) -> None:
    """Rename a file to `*.old`, with the time in between."""
    path.rename(_old(path))


def _old(path: Path) -> Path:
    return path.with_name(f"{path.name}.{datetime.now():%Y-%m-%dT%H-%M-%S.%f}.old")


def sort_file(path: Path) -> None:
    """Sort a file of answers by question, the last line of each, atomically. Nothing is written if it is sorted.

    Raises `BareloopError` if another process is writing it.
    """
    with JudgedFile(path):
        lines = {}
        for number, text, row in complete_lines(path):
            if row is None or type(row.get("question_id")) is not int:
                raise BareloopError(f"{path}, line {number} has no question_id; repair or move it")
            lines[row["question_id"]] = text
        content = "".join(f"{lines[question]}\n" for question in sorted(lines))
        if path.read_text(encoding="utf-8") != content:
            write_atomic(path, content)
