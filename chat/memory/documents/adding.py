"""Files as pieces of a memory: found, read, cut, and added if they have changed. Loads without torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

from chat.memory.documents.reading import MAX_BYTES, read_document, read_file
from chat.memory.documents.splitting import Count, count_words, split
from chat.memory.pieces import NewPiece
from chat.memory.store import BATCH, MemoryStore
from chat.memory.vectors import Vectors
from engine.runtime.errors import BareloopError
from engine.runtime.files import local_path
from engine.runtime.wording import plural

__all__ = ["Added", "add_files", "read_document", "split"]

Progress = Callable[[int, int, str], None]  # files done, all files, what is done now


@dataclass
class Added:
    """What `add_files` has done."""

    files: int = 0  # added or replaced
    unchanged: int = 0
    pieces: int = 0  # that are new
    skipped: list[tuple[str, str]] = field(default_factory=list)  # path and reason

    def __str__(self) -> str:
        parts = [f"{plural(self.files, 'file')} added with {plural(self.pieces, 'new piece')}"]
        parts += [f"{self.unchanged} unchanged"] if self.unchanged else []
        parts += [f"{len(self.skipped)} skipped"] if self.skipped else []
        return ", ".join(parts)


def absolute(path: str | Path) -> Path:
    """An absolute path without . and .., whose links are kept."""
    return Path(os.path.abspath(local_path(path)))  # noqa: PTH100, as `resolve` would follow links


def find_files(paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """The files of these paths, sorted, those of folders recursively, with the reason why one is to be skipped.

    Hidden files of folders are left out; links are not followed.
    """
    for path in map(absolute, paths):
        if path.is_symlink():
            yield path, "a link, which is not followed"
        elif not path.is_dir():
            yield path, ""
        else:
            errors: list[OSError] = []
            for folder, folders, names in os.walk(path, onerror=errors.append):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in sorted(names):
                    if not name.startswith("."):
                        yield Path(folder, name), ""
            yield from ((Path(error.filename), error.strerror or str(error)) for error in errors)


def add_files(
    store: MemoryStore,
    paths: Sequence[Path],
    progress: Progress | None = None,
    count: Count = count_words,
    max_bytes: int = MAX_BYTES,
) -> Added:
    """Add documents, and replace those that have changed since. Run it again to continue after an interruption.

    `progress`: called with files done, all files, and what is done now. `count`: number of tokens of a text. Files that
    cannot be read, or have no text, are skipped, each with its reason.
    """
    added, files = Added(), dict(find_files(paths))
    known = {source.path: source.hash for source in store.sources()}
    tell: Progress = progress or (lambda *_: None)
    for number, (path, problem) in enumerate(files.items()):
        tell_pieces = partial(tell, number, len(files))
        tell_pieces(path.name)
        try:
            if problem:
                raise BareloopError(problem)
            content = read_file(path, max_bytes)
            digest = hashlib.sha256(content).hexdigest()
            if known.get(str(path)) == digest:
                added.unchanged += 1
                continue
            sections = read_document(path, content)
        except BareloopError as error:
            added.skipped.append((str(path), str(error)))
            continue
        texts = [(place, piece) for place, text in sections for piece in split(text, count)]
        now = datetime.now()
        pieces = [NewPiece(text, "document", str(path), place, date=now) for place, text in texts]
        replaces = bool(known.get(str(path)))
        added.pieces += replace(store, str(path), digest, pieces, replaces, tell_pieces)
        added.files += 1
    store.purge()
    tell(len(files), len(files), "")
    return added


def replace(
    store: MemoryStore,
    path: str,
    digest: str,
    pieces: Sequence[NewPiece],
    at_once: bool,
    tell: Callable[[str], None],
) -> int:
    """Store the pieces of a document instead of those that it had. Returns how many are new.

    A new document is stored piece by piece, so that nothing is computed twice if the program is interrupted. Of one
    that is there already, the old and the new pieces change places in one transaction (`at_once`). Pieces that both
    have keep their ids and vectors.
    """
    before = {piece.id for piece in store.pieces(source=path)}
    ids: set[int] = set()
    vectors = dict[bytes, Vectors]()
    if not at_once:
        with store.database.writing():
            store.set_source(path, "")
    for start in range(0, len(pieces), BATCH):
        batch = pieces[start : start + BATCH]
        if at_once:
            vectors |= store.embed_new(batch)
        else:
            ids.update(store.add(batch))
        tell(f"{Path(path).name}, {min(start + BATCH, len(pieces))}/{len(pieces)} pieces")
    with store.database.writing():
        if at_once:
            ids.update(store.insert(pieces, vectors))
        stale = {piece.id for piece in store.pieces(source=path)} - ids
        store.delete(stale)
        store.set_source(path, digest)
    return len(ids - before)
