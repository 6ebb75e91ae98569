"""The slash commands of the memory: what stands in the prompt, notes, searching, forgetting. Loads without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chat.conversation.events import ChatEvents
from chat.conversation.memory_block import quotation
from chat.conversation.recall import Memory
from chat.registry import command, info
from engine.runtime.errors import UsageError, quote
from engine.runtime.wording import plural

if TYPE_CHECKING:
    from chat.workspace import Workspace

SHOWN = 400  # characters of a piece in a list


@command()
def memory(workspace: Workspace, rest: str) -> ChatEvents:  # noqa: ARG001
    """show which memories stand in the prompt, where they are from, and how many there are"""
    if workspace.memory is None:
        yield info("memory is off: nothing is recalled or remembered; --memory turns it on")
        return
    yield info(summary(workspace.memory))


@command("TEXT")
def remember(workspace: Workspace, rest: str) -> ChatEvents:
    """keep a note in the memory"""
    number = _opened(workspace).note(rest)
    yield info(f"remembered as [{number}]")


@command("N|all")
def forget(workspace: Workspace, rest: str) -> ChatEvents:
    """delete a memory by its number, or all of them, also from the prompt"""
    opened = _opened(workspace)
    if rest == "all":
        yield info(f"forgot all {plural(opened.clear(), 'memory')}{opened.store.unpurged}")
        return
    words = rest.replace("[", " ").replace("]", " ").replace(",", " ").split()
    if not words or not all(word.isdecimal() and len(word) < 19 for word in words):
        raise UsageError(
            f"/forget needs the number of a memory, as /memory and /recall show it, or all, not {quote(rest)}"
        )
    count = opened.forget([int(word) for word in words])
    if not count:
        raise UsageError(f"there is no memory {rest}")
    yield info(f"forgot {plural(count, 'memory')}{opened.store.unpurged}")


@command("QUERY")
def recall(workspace: Workspace, rest: str) -> ChatEvents:
    """search the memory; the prompt stays as it is"""
    opened = _opened(workspace)
    if not rest:
        raise UsageError("/recall needs what to search for")
    found = [hit.piece for hit in opened.search(rest)]
    yield info("\n".join(f"{opened.label(piece)}\n{quotation(piece, SHOWN)}" for piece in found) or "nothing found")


def summary(opened: Memory) -> str:
    """How many pieces there are and how they are found, and the block in the prompt."""
    store, recalled = opened.store, opened.recalled
    count = store.count()
    lines = [
        f"memory {opened.name}: {plural(count, 'memory')}" + ("" if opened.keeps else "; this conversation is not kept")
    ]
    if store.notice:
        lines.append(store.notice)
    if recalled.pieces:
        number = plural(len(recalled.pieces), "memory")
        lines += [f"in the prompt: {number}, {plural(recalled.tokens, 'token')}", recalled.block]
    else:
        lines.append("in the prompt: none")
    return "\n".join(lines)


def _opened(workspace: Workspace) -> Memory:
    if workspace.memory is None:
        raise UsageError("memory is off; start with --memory")
    return workspace.memory
