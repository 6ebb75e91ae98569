"""The tabs that show a conversation, and what they know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from chat.conversation.events import Notice
from chat.web.snapshot import Running
from chat.web.streams import Event, PieceEvent, Tab, encode, event

KEPT = ("dropped", "summary", "recalled", "loop")  # notices that stay with their turn


class Audience:
    """Tells the tabs of one conversation what happens. Used only in the thread of the event loop.

    So a tab that connects in the middle of a reply gets a snapshot with the part so far, and then exactly what follows.
    """

    def __init__(self, id: str) -> None:
        self.id = id
        self.tabs: set[Tab] = set()
        self.view = b""  # what a snapshot says while nothing runs
        self.running = Running()

    def snapshot(self) -> Event:
        """The whole conversation, as far as the tabs know it."""
        value = b'{"id":' + encode(self.id) + b"," + self.view + b',"running":' + self.running.encoded() + b"}"
        return Event("snapshot", self.id, b'"value":' + value)

    def tell(self, event: Event) -> None:
        """Tell all tabs."""
        for tab in self.tabs:
            tab.push(event)

    def tell_view(self, view: bytes) -> None:
        """Tell what is there now."""
        self.view = view
        self.tell(self.snapshot())

    def begin(self, running: Running) -> None:
        """A reply begins."""
        self.running = running
        part = {"beginning": running.text, "reasoning": running.reasoning}
        said = {"message": running.message, "images": running.images}
        self.tell(event("started", self.id, turn=running.turn, **said, **part))

    def take_piece(self, piece: PieceEvent) -> None:
        """The reply goes on."""
        self.running.pieces.append((piece.text, piece.reasoning))
        self.running.tokens += piece.tokens
        self.tell(piece)

    def notify(self, notice: Notice, tab: str | None) -> None:
        """Tell a notice, and keep it with the running reply. `tab`: who has caused it."""
        if notice.kind in KEPT:
            self.running.notices.append(notice)
        members = {"kind": notice.kind, "text": notice.text, "tab": tab, "turn": self.running.turn}
        self.tell(replace(event("notice", self.id, **members), is_lasting=notice.kind in ("warning", "error")))

    def tell_loading(self, model: str, seconds: float, size: int, is_done: bool) -> None:
        """A model is being loaded."""
        members = {"model": model, "seconds": round(seconds, 1), "bytes": size, "done": is_done}
        self.tell(event("loading", self.id, **members))

    def draft(
        self, text: str, images: list[dict[str, str]], tab: str | None, delivered: Callable[[], None] | None
    ) -> Event:
        """A message that got no reply goes back to the user. `delivered` is called when a browser has it."""
        told = event("draft", self.id, text=text, images=images, tab=tab)
        return replace(told, is_lasting=True, on_sent=delivered)
