"""Files that are never lost: replaced whole or not at all, or appended to by one writer. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.runtime.errors import BareloopError

SYNC_INTERVAL = 5.0  # seconds between fsyncs of an append-only file: what a power cut can cost


def local_path(name: str | Path) -> Path:
    """A path as the user wrote it, `~` expanded; names that can be no path are refused."""
    try:
        path = Path(name).expanduser()
        if "\0" in str(path):
            raise ValueError("a zero byte")
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise BareloopError(f"no such folder: {name} ({error})") from None
    return path


def write_atomic(path: Path, text: str | bytes | Iterable[str], private: bool = False) -> None:
    """Make `text` the content of a file, so that there is the old one or the new one at any moment.

    What is no file, such as a pipe or a terminal, is written to as it is. A `private` one is its owner's alone.
    """
    parts = [text] if isinstance(text, str | bytes) else text
    content = (part if isinstance(part, bytes) else part.encode() for part in parts)
    draft = None
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                file.writelines(content)
            return
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        mode = 0o600 if private else 0o666
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise BareloopError(f"cannot write {path}: {error.strerror}") from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


def user_cache(name: str) -> Path:
    """A folder of the user's cache; of the temporary folder where the library that knows it is not installed."""
    try:
        import platformdirs
    except ImportError:
        return Path(tempfile.gettempdir()) / "bareloop" / name
    return platformdirs.user_cache_path("bareloop", appauthor=False) / name


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One process at a time: waits for the lock on this file, which the system takes back from one that was killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        lock_file(file.fileno(), wait=True)
        yield


def lock_file(file: int, wait: bool) -> None:
    """Take the system's own lock, which a killed process cannot leave behind; raises OSError if another has it."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows locks bytes, so those that nobody reads
        import msvcrt

        os.lseek(file, 2**40, os.SEEK_SET)
        mode = msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK  # type: ignore[attr-defined]
        msvcrt.locking(file, mode, 1)  # type: ignore[attr-defined]


class AppendFile:
    """A text file of lines that this process alone appends to while it is open.

    A line is there whole or not at all: what a kill or a power cut left of one is not among the `lines`, and is
    overwritten by the first that is appended; what a full disk tears is taken back at once.
    """

    def __init__(self, path: Path) -> None:
        """Open or create; raises one line where another process has it open or it cannot be written."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                raise BareloopError(f"{path} is no file to append to; move it away")
            self._file = self._open()
        except OSError as error:
            raise BareloopError(f"cannot write {path}: {error.strerror}") from error
        try:
            with os.fdopen(os.dup(self._file), "rb") as file:
                content = file.read()
        except OSError as error:
            os.close(self._file)
            raise BareloopError(f"cannot read {path}: {error.strerror}") from error
        self._size = content.rfind(b"\n") + 1
        self.lines = content[: self._size].decode("utf-8", errors="replace").split("\n")[:-1]
        self.torn = content[self._size :].decode("utf-8", errors="replace")
        self._synced = time.monotonic()

    def append(self, lines: str) -> None:
        """Add whole lines, each with its line end, in one write that the system has when this returns."""
        data = lines.encode()
        try:
            os.truncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            self._size += len(data)
            if time.monotonic() - self._synced > SYNC_INTERVAL:
                self.sync()
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.truncate(self._file, self._size)
            if isinstance(error, OSError):
                raise BareloopError(
                    f"cannot write {self.path}: {error.strerror}; all that was written before is there: "
                    "make room, and the same command goes on"
                ) from error
            raise

    def sync(self) -> None:
        """Wait until the disk has it."""
        os.fsync(self._file)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Give the file to the next writer."""
        with contextlib.suppress(OSError):
            os.fsync(self._file)
        os.close(self._file)

    def __enter__(self) -> AppendFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> int:
        """The file under our lock; anew if it was renamed before we had the lock."""
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
            try:
                self._lock(file)
                if os.path.samestat(os.fstat(file), self.path.stat()):
                    return file
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(file)
                raise
            os.close(file)

    def _lock(self, file: int) -> None:
        try:
            lock_file(file, wait=False)
        except (BlockingIOError, PermissionError):
            raise BareloopError(f"another process is writing {self.path}; wait for it, or stop it") from None


def parse_json(path: Path) -> Any:
    """What a JSON file holds, or one line that says what is wrong with it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BareloopError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BareloopError(f"{path} is not JSON ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object from a file; raises one line where it holds anything else."""
    value = parse_json(path)
    if not isinstance(value, dict):
        raise BareloopError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value
