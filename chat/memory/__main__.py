"""python -m chat.memory: add documents to a memory, list, search and forget. Loads without torch."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from chat.memory.documents.adding import absolute, add_files
from chat.memory.documents.splitting import count_words
from chat.memory.embedder import NONE, EngineEmbedder, chosen_embedder
from chat.memory.pieces import Piece
from chat.memory.store import DEFAULT, MODES, MemoryStore, memory_path
from engine.checkpoints import embedded
from engine.cli.parser import Parser, printable, require_at_least, run
from engine.cli.progress import Progress
from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.wording import plural

LINE = 100  # characters of a text in a list


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m chat.memory", "Long-term memory: add documents, list, search and forget.")
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, about: str) -> Parser:
        """A command with the flags that all of them have."""
        one: Parser = commands.add_parser(name, description=f"{about[0].upper()}{about[1:]}.", help=about)
        one.add_argument("--memory", default=DEFAULT, metavar="NAME", help=f"a name or a file (default: {DEFAULT})")
        one.add_argument(
            "--memory-model",
            metavar="NAME",
            help=f"embedding model: a folder, a hub id or {embedded.MINILM}; {NONE} searches by words alone "
            f"(default: {embedded.MINILM} if its package is installed, else {NONE})",
        )
        one.add_argument("--device", default="auto", help="of the embedding model: auto, cpu, cuda, cuda:N or mps")
        return one

    add = command("add", "add files and folders: text, Markdown, HTML, PDF; those that have not changed are skipped")
    add.add_argument("paths", nargs="+", metavar="FILE")
    listing = command("list", "list the documents and the newest pieces")
    listing.add_argument("--limit", type=int, default=20, metavar="N", help="pieces (default: 20)")
    search = command("search", "find pieces by their words and their meaning")
    search.add_argument("query", nargs="+", metavar="QUERY")
    search.add_argument("--limit", type=int, default=5, metavar="N", help="pieces (default: 5)")
    search.add_argument("--mode", choices=MODES, default="hybrid", help="(default: hybrid)")
    forget = command("forget", "delete pieces, also from the bytes of the file")
    forget.add_argument("ids", nargs="*", type=int, metavar="ID")
    forget.add_argument(
        "--source", help="all pieces of a document (its path), of a conversation (its id) or all notes (note)"
    )
    forget.add_argument("--all", action="store_true", help="everything")
    forget.add_argument("--yes", action="store_true", help="do not ask before --source or --all forgets several")
    command("reembed", "compute all vectors with this embedding model; continues if it was interrupted")
    return result


def add(store: MemoryStore, options: Any) -> None:
    """Add files and folders, and print what was skipped."""
    with contextlib.ExitStack() as stack:
        bars: list[Progress] = []

        def progress(done: int, total: int, status: str) -> None:
            if not bars:
                bars.append(stack.enter_context(Progress("add", total)))
            bars[0].advance(done - bars[0].done, status)

        count = store.embedder.count if isinstance(store.embedder, EngineEmbedder) else count_words
        added = add_files(store, [absolute(path) for path in options.paths], progress, count)
    for path, reason in added.skipped:
        print(f"skipped {printable(path)}: {reason}", file=sys.stderr)
    print(f"{added}; {plural(store.count(), 'memory')} in {store.path}")
    named = {str(absolute(path)) for path in options.paths}
    if refused := [path for path, _ in added.skipped if path in named]:
        raise BareloopError(f"not added: {len(refused)} of the files that were named")


def show(store: MemoryStore, options: Any) -> None:
    """Print the documents and the newest pieces."""
    require_at_least(0, options, "limit")
    print(f"{plural(store.count(), 'memory')} in {store.path}")
    for source in store.sources():
        state = "" if source.hash else ", not completely added"
        print(printable(f"document {source.path}: {plural(source.pieces, 'piece')}{state}"))
    for piece in store.pieces(limit=options.limit):
        print(printable(_line(piece)))


def search(store: MemoryStore, options: Any) -> None:
    """Print the pieces that are found, best first."""
    require_at_least(1, options, "limit")
    for hit in store.search(" ".join(options.query), options.limit, mode=options.mode):
        ranks = ", ".join(
            f"{name} {rank}" for name, rank in (("words", hit.bm25_rank), ("meaning", hit.vector_rank)) if rank
        )
        print(printable(f"{_heading(hit.piece)} · {ranks}\n    {' '.join(hit.piece.text.split())}"))


def forget(store: MemoryStore, options: Any) -> None:
    """Delete pieces, those of a source, or everything; ask first if those are several. Raises `UsageError`."""
    if bool(options.ids) + (options.source is not None) + options.all != 1:
        raise UsageError("forget needs either IDs, or --source, or --all")
    if options.all:
        _confirm(store.count(), "", options.yes)
        count = store.clear()
    elif options.source is not None:
        names = {options.source, str(absolute(options.source))}
        _confirm(sum(len(store.pieces(source=name)) for name in names), f" of {options.source}", options.yes)
        count = sum(store.forget_source(name) for name in names)
    else:
        count = store.forget(options.ids)
    left = store.count()
    print(f"forgot {plural(count, 'memory')}; {left:,} {'is' if left == 1 else 'are'} left{store.unpurged}")


def _confirm(count: int, whose: str, is_confirmed: bool) -> None:
    """Raise `BareloopError` unless the user agrees to forget several memories. Without a terminal nobody can."""
    if count < 2 or is_confirmed:
        return
    what = printable(f"{plural(count, 'memory')}{whose}")
    if not sys.stdin.isatty() or not sys.stderr.isatty():
        raise BareloopError(f"this forgets {what}, and there is no terminal to ask you on; add --yes")
    print(f"forget {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    if not sys.stdin.readline().strip().lower().startswith("y"):
        raise BareloopError("nothing was forgotten")


def reembed(store: MemoryStore) -> None:
    """Compute the vectors that are missing."""
    missing = store.missing()
    with Progress("embed", missing) as progress:
        done = store.reembed(progress.advance)
    print(f"computed {plural(done, 'vector')}")


def main(options: Any) -> None:
    """Open the memory, with its embedding model where vectors are needed, and execute the command."""
    path = memory_path(options.memory)
    if options.command != "add" and not path.exists():
        raise BareloopError(f"there is no memory {path}")
    needs_vectors = options.command in ("add", "search", "reembed")
    embedder = chosen_embedder(options.memory_model, options.device) if needs_vectors else None
    if isinstance(embedder, EngineEmbedder) and not embedder.llm.is_encoder:
        print(f"note: {embedder.name} was not trained to embed texts; {embedded.MINILM} was", file=sys.stderr)
    with MemoryStore.open(path, embedder) as store:
        if options.command in ("add", "search") and store.notice:
            print(f"note: {store.notice}", file=sys.stderr)
        match options.command:
            case "add":
                add(store, options)
            case "list":
                show(store, options)
            case "search":
                search(store, options)
            case "forget":
                forget(store, options)
            case "reembed":
                reembed(store)


def _heading(piece: Piece) -> str:
    """Id, date, kind and origin of a piece."""
    origin = " · ".join(name for name in (piece.source, piece.place) if name)
    return f"[{piece.id}] {piece.date:%Y-%m-%d} {piece.kind} {origin}"


def _line(piece: Piece) -> str:
    text = " ".join(piece.text[: 4 * LINE].split())
    return f"{_heading(piece)}: {text if len(text) <= LINE else f'{text[: LINE - 1]}…'}"


if __name__ == "__main__":
    run(parser(), main)
