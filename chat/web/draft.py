"""A message that got no reply: it goes back to the user, to the tab that has sent it, or to the next one."""

from __future__ import annotations

from collections.abc import Sequence

from chat.images import ImagePart
from chat.web.agent import PageAgent
from chat.web.audience import Audience
from chat.web.streams import Event


class Draft:
    """The draft of a conversation: text and images, which its agent has until a tab has taken them."""

    def __init__(self, agent: PageAgent, audience: Audience) -> None:
        self.agent, self.audience = agent, audience
        self._tab: str | None = None  # that was told it; if that one goes on, it has it

    def __bool__(self) -> bool:
        """Whether there is a message to give back."""
        return bool(self.agent.draft or self.agent.draft_images)

    def keep(self, text: str, images: Sequence[ImagePart], tab: str | None) -> None:
        """Note a message that got no reply. `tab`: the one that is told."""
        self.agent.draft, self.agent.draft_images = text, list(images)
        self._tab = tab

    def told(self, tab: str | None) -> Event:
        """What gives it back: to a tab, which may be gone, or to any. That one has it for certain."""
        text, images = draft = self.agent.draft, self.agent.draft_images

        def forget() -> None:
            if (self.agent.draft, self.agent.draft_images) == draft:
                self._forget()

        shown = self.agent.shown_images.tell(images)
        return self.audience.draft(text, shown, tab, forget if tab is None else None)

    def goes_on(self, tab: str) -> None:
        """A tab sends a line: if it was told the draft, it has it."""
        if tab == self._tab:
            self._forget()
            self._tab = None

    def _forget(self) -> None:
        self.agent.draft, self.agent.draft_images = "", []
