"""Files that are never lost: replaced atomically, or appended to by one process. Loads without torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.runtime.errors import BareloopError

SYNC_INTERVAL = 5.0  # seconds between fsyncs of an append-only file: the most that a power cut can lose


def local_path(name: str | Path) -> Path:
    """A user's path with `~` expanded. Raises `BareloopError` for a name that cannot be a path."""
    try:
        path = Path(name).expanduser()
        if "\0" in str(path):
            raise ValueError("it has a zero byte")
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise BareloopError(f"no such folder: {name} ({error})") from None
    return path


def write_atomic(path: Path, text: str | bytes | Iterable[str], private: bool = False) -> None:
    """Replace a file's content atomically: at any moment the file is the old or the new one.

    Pipes, terminals and the like are written to directly. A `private` file is readable only by its owner. Raises
    `BareloopError` if that fails, also for a text that UTF-8 does not have.
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
    except UnicodeError as error:
        raise BareloopError(f"cannot write {path}: the text has half of a UTF-16 pair") from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


@contextlib.contextmanager
def draft_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`. It is renamed to `folder` when the block ends, or removed if that fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        draft.chmod(0o755)
        yield draft
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def files_key(paths: Iterable[Path]) -> str:
    """A cache key for these files: a hub's blob is named by its content, any other file by its path and time."""
    digest = hashlib.sha256()
    for path in paths:
        real = path.resolve()
        digest.update(f"{real} {real.stat().st_size} {real.stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def user_cache(name: str) -> Path:
    """A folder in the user's cache, or in the temporary folder if platformdirs is not installed."""
    try:
        import platformdirs
    except ImportError:
        return Path(tempfile.gettempdir()) / "bareloop" / name
    return platformdirs.user_cache_path("bareloop", appauthor=False) / name


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, waiting for it. The system releases the lock of a killed process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        lock_file(file.fileno(), wait=True)
        yield


def lock_file(file: int, wait: bool) -> None:
    """Lock a file. The system releases the lock of a killed process. Raises OSError if another process has it."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows locks byte ranges; this one is beyond the content
        import msvcrt

        os.lseek(file, 2**40, os.SEEK_SET)
        mode = msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK  # type: ignore[attr-defined]
        msvcrt.locking(file, mode, 1)  # type: ignore[attr-defined]


class AppendFile:
    """A text file of lines, which only this process can append to while it is open.

    Lines are never torn: an incomplete last line, left by a kill or a power cut, is not in `lines`, and the next append
    overwrites it; a line that a full disk cuts off is removed at once.
    """

    def __init__(self, path: Path) -> None:
        """Open or create. Raises `BareloopError` if another process has it open, or it cannot be written."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                raise BareloopError(f"{path} is not a regular file; move it away")
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
        """Append whole lines, each with its line end. They are handed to the system when this returns."""
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
                    f"cannot write {self.path}: {error.strerror}; everything before is kept: "
                    "free some space, and run the same command to continue"
                ) from error
            raise

    def truncate(self, count: int) -> None:
        """Keep the first `count` lines. The lock is held all the time."""
        try:
            with os.fdopen(os.dup(self._file), "rb") as file:
                file.seek(0)
                size = sum(len(file.readline()) for _ in range(count))
            os.truncate(self._file, size)
        except OSError as error:
            raise BareloopError(f"cannot write {self.path}: {error.strerror}") from error
        self._size, self.torn = size, ""
        del self.lines[count:]

    def sync(self) -> None:
        """Wait until the content is on the disk."""
        os.fsync(self._file)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Close the file and release its lock. A file that is still empty is removed."""
        with contextlib.suppress(OSError):  # Windows does not remove open files
            if self._size == 0 and not self.torn and os.path.samestat(os.fstat(self._file), self.path.stat()):
                self.path.unlink()
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
        """Open and lock the file; again if it was renamed before we had the lock."""
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
    """Parse a JSON file. Raises `BareloopError` if it cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # without a byte order mark, which some editors write
    except OSError as error:
        raise BareloopError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BareloopError(f"{path} is not JSON ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object from a file. Raises `BareloopError` for anything else."""
    value = parse_json(path)
    if not isinstance(value, dict):
        raise BareloopError(f"{path} has a {type(value).__name__}, not a JSON object")
    return value
